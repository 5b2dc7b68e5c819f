"""Supervised fine-tuning: next-token cross-entropy on what the assistant says.

    alignctl sft --preset llama2-7b --load models/mg --data data/sft

The launcher half (`launch`) checks every input and prepares the data before a process is started;
the worker half (`run`) is what torchrun starts on every rank:

    python -m alignctl.engines.torchrun --nproc-per-node 8 ... -m alignctl.stages.sft runs/NAME

With `extra_vocab_size` the model gets rows for the tokens of a larger tokenizer, such as the marks
of a chat template.

Departures from the tutorials' systems: the loss is divided by the tokens learned in the whole
optimizer step (not per micro batch), rows are not padded, all assistant turns are learned.
"""

import sys
from typing import TYPE_CHECKING

from alignctl import console
from alignctl.config.run import SFTConfig
from alignctl.data.sft import prepare
from alignctl.data.store import SFTData
from alignctl.launch import worker
from alignctl.launch.attempt import Attempt
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import course, launcher, training

if TYPE_CHECKING:
    from alignctl.checkpoints.source import Source


def launch(config: SFTConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""

    def prepare_data(source: "Source", attempt: Attempt) -> None:
        folder = launcher.prepare_rows(prepare, config, source, attempt)
        summary = SFTData.open(folder).summary
        console.say(summary.describe())
        console.say(str(course.of_documents(config, summary)))

    return launcher.launch(config, prepare_data, nodes=nodes, dry_run=dry_run, resume=resume)


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, train, validate, save."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    config = SFTConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    config = training.initialize(config, folder)
    data = SFTData.open(launcher.prepared_data(folder))
    checkpoint, source = training.newest_model(config, folder)
    engine = training.build_engine(config, head="lm")
    step = training.load(config, engine, source, checkpoint)
    training.train(training.Task(config, folder, engine, source, data, CrossEntropy()), step)


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
