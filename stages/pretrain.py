"""Go on pretraining a model on indexed datasets: every token is learned.

    alignctl pretrain --preset bloom-7b --load models/mg --data data/wudao_text_document

Next-token cross-entropy. The order of the sequences is computed before a process is started. With
`extra_vocab_size` the model gets rows for the tokens of a larger tokenizer; checkpoints, and what
is exported from them, have that many more.

Departures from the tutorials' systems: datasets are checked against the model's tokenizer and
vocabulary; the last sequence of the held-out data is not dropped; with documents kept apart, what
follows an EOD is not learned from it.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from alignctl.config.pretrain import PretrainConfig
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import BLEND, DATA, LOAD, TOKENIZER, VALIDATION_DATA
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    from alignctl.algorithms.loss import Loss
    from alignctl.engines.metrics import StepMetrics


def work(config: PretrainConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, train, validate, save."""
    from alignctl.stages.shared import training

    training.run(STAGE, config, folder, report=_add_perplexity)


def make_loss(_: PretrainConfig) -> "Loss":
    """Make what is minimised."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    return CrossEntropy()


def _add_perplexity(result: "StepMetrics") -> dict[str, float]:
    # Of a loss that has diverged the exponential would not be finite.
    return {"perplexity": math.exp(min(result.loss, 700.0)), **result.metrics}


STAGE = Stage(
    name="pretrain",
    config=PretrainConfig,
    help="""Go on pretraining a model on indexed datasets: every token is learned.

    alignctl prepare tokenize makes the datasets, and Megatron's own are read as they are.
    """,
    examples=(
        "alignctl pretrain --preset bloom-7b --load models/mg --data data/wudao_text_document",
        "alignctl pretrain --preset bloom-7b --load models/mg \\",
        "  'data.blend={data/zh: 0.7, data/en: 0.3}' train.tokens=1000000000",
        "alignctl pretrain --preset llama2-70b --load models/mg --data data/shards \\",
        "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
    ),
    inputs=(
        LOAD,
        replace(
            DATA,
            meaning="an indexed dataset, or a folder of them (or data.blend)",
            is_dataset=True,
            places=("data/*.idx", "data/*/*.idx"),
            maker="alignctl prepare tokenize",
        ),
        replace(BLEND, is_dataset=True),
        replace(VALIDATION_DATA, is_dataset=True),
        TOKENIZER,
    ),
    rows="datasets",
    work=work,
    loss=make_loss,
    following="alignctl sft{preset} --load {run}",
)

if __name__ == "__main__":
    STAGE.run_rank()
