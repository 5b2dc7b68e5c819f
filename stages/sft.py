"""Fine-tune a model on conversations: only what the assistant says is learned.

    alignctl sft --preset llama2-7b --load models/mg --data data/sft

Next-token cross-entropy. With `extra_vocab_size` the model gets rows for the tokens of a larger
tokenizer, such as the marks of a chat template.

Departures from the tutorials' systems: the loss is divided by the tokens learned in the whole
optimizer step (not per micro batch), rows are not padded, all assistant turns are learned.
"""

from typing import TYPE_CHECKING

from alignctl.config.run import SFTConfig
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import LOAD, rows
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    from alignctl.algorithms.loss import Loss


def work(config: SFTConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, train, validate, save."""
    from alignctl.stages.shared import training

    training.run(STAGE, config, folder)


def make_loss(_: SFTConfig) -> "Loss":
    """Make what is minimised."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    return CrossEntropy()


STAGE = Stage(
    name="sft",
    config=SFTConfig,
    help="Fine-tune a model on conversations: only what the assistant says is learned.",
    examples=(
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        "alignctl sft --preset llama2-70b --load models/mg --data data/sft \\",
        "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
        "alignctl sft --preset llama2-70b --simulate",
    ),
    inputs=rows(LOAD, "sft"),
    rows="documents",
    work=work,
    loss=make_loss,
    following="alignctl reward{preset} --load {run}",
)

if __name__ == "__main__":
    STAGE.run_rank()
