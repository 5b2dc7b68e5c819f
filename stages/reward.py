"""Reward modelling: scores that put better answers above worse ones, by the Bradley-Terry model.

    alignctl reward --preset llama2-7b --load runs/llama2-7b-sft --data data/preferences

Starts from a policy, whose output layer gives way to a new row that scores a document at its last
token, or goes on with a reward model. When all steps are taken, the checkpoint's manifest gets a
`score_offset` that makes the mean score of the best answers of the training rows 0 (Huang et al.
2024, detail 7). Heads have no bias: a reader adds the offset to every score, and the weights, here
and exported to Hugging Face, are without it.

Departures from the tutorials' systems: one row instead of two layers, so that transformers can load
the result; every pair of answers with scores as they are, not cut to integers; prompts weigh the
same in the whole optimizer step; one EOS, not two.
"""

import sys
from typing import TYPE_CHECKING

from alignctl import console
from alignctl.config.run import RewardConfig
from alignctl.data import order
from alignctl.data.preference_store import PreferenceData
from alignctl.data.preferences import prepare
from alignctl.launch import worker
from alignctl.launch.attempt import Attempt
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import course, launcher, training

if TYPE_CHECKING:
    from alignctl.algorithms.reward import BradleyTerry
    from alignctl.checkpoints.source import Source
    from alignctl.engines.protocol import Engine


def launch(config: RewardConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""

    def prepare_data(source: "Source", attempt: Attempt) -> None:
        folder = launcher.prepare_rows(prepare, config, source, attempt)
        summary = PreferenceData.open(folder).summary
        console.say(summary.describe())
        console.say(str(course.of_preferences(config, summary)))
        if source.role == "policy":
            console.say("head: a new one, since the model is a policy")

    return launcher.launch(
        config,
        prepare_data,
        nodes=nodes,
        dry_run=dry_run,
        resume=resume,
        roles=("policy", "reward"),
    )


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, train, validate, save."""
    from alignctl.algorithms.reward import report

    config = RewardConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    config = training.initialize(config, folder)
    data = PreferenceData.open(launcher.prepared_data(folder))
    checkpoint, source = training.newest_model(config, folder)
    engine = training.build_engine(
        config, head=source.head if source.role == "reward" else "linear"
    )
    step = training.load(config, engine, source, checkpoint)
    task = training.Task(
        config,
        folder,
        engine,
        source,
        data,
        loss_of(config),
        lambda result: report(result.metrics),
        lambda: _score_offset(config, engine, data),
    )
    training.train(task, step)


def loss_of(config: RewardConfig) -> "BradleyTerry":
    """What is minimised."""
    from alignctl.algorithms.reward import BradleyTerry

    return BradleyTerry(config.loss.margin, config.loss.centering)


def _score_offset(config: RewardConfig, engine: "Engine", data: PreferenceData) -> float:
    """Minus the mean score of the best answer to each training prompt."""
    best = data.train.best_answers()
    batches = order.validation_batches(
        best,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    scores = engine.document_outputs(batches, data.num_documents)
    return -float(scores[best.members].mean())


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
