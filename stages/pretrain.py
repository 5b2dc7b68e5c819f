"""Continued pretraining: next-token cross-entropy on every token of indexed datasets.

    alignctl pretrain --preset bloom-7b --load models/mg --data data/wudao_text_document

The launcher half (`launch`) looks at every dataset and computes the order of the sequences before
a process is started; the worker half (`run`) is what torchrun starts on every rank:

    python -m alignctl.engines.torchrun --nproc-per-node 8 ... -m alignctl.stages.pretrain runs/NAME

With `extra_vocab_size` the model gets rows for the tokens of a larger tokenizer; checkpoints, and
what is exported from them, have that many more.

Departures from the tutorials' systems: datasets are checked against the model's tokenizer and
vocabulary; the last sequence of the held-out data is not dropped; with documents kept apart, what
follows an EOD is not learned from it.
"""

import math
import sys
import warnings
from typing import TYPE_CHECKING

from alignctl.config.pretrain import PretrainConfig
from alignctl.corpus.preparation import prepare
from alignctl.corpus.samples import PretrainData
from alignctl.launch import worker
from alignctl.launch.attempt import Attempt
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import launcher, training

if TYPE_CHECKING:
    from alignctl.checkpoints.source import Source
    from alignctl.engines.metrics import StepMetrics


def launch(config: PretrainConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""

    def prepare_data(source: "Source", attempt: Attempt) -> None:
        warnings.filterwarnings("ignore", module=r"megatron\.")  # of libraries it can do without
        tokenizer = launcher.open_tokenizer(config, source, attempt.folder)
        folder = prepare(config, tokenizer, attempt.folder.data)
        launcher.choose_data(folder, "the datasets", attempt)

    return launcher.launch(config, prepare_data, nodes=nodes, dry_run=dry_run, resume=resume)


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, train, validate, save."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    config = PretrainConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    config = training.initialize(config, folder)
    data = PretrainData.open(launcher.prepared_data(folder))
    checkpoint, source = training.newest_model(config, folder)
    engine = training.build_engine(config, head="lm")
    step = training.load(config, engine, source, checkpoint)
    task = training.Task(config, folder, engine, source, data, CrossEntropy(), _with_perplexity)
    training.train(task, step)


def _with_perplexity(result: "StepMetrics") -> dict[str, float]:
    # Of a loss that has diverged the exponential would not be finite.
    return {"perplexity": math.exp(min(result.loss, 700.0)), **result.metrics}


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
