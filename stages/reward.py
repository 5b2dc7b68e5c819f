"""Train a reward model on preferences: better answers get higher scores.

    alignctl reward --preset llama2-7b --load runs/llama2-7b-sft --data data/preferences

The Bradley-Terry model: scores put better answers above worse ones. Starts from a policy, whose
output layer gives way to a new row that scores
a document at its last token, or goes on with a reward model. When all steps are taken, the
checkpoint's manifest gets a `score_offset` that makes the mean score of the best answers of the
training rows 0 (Huang et al. 2024, detail 7). Heads have no bias: a reader adds the offset to every
score, and the weights, here and exported to Hugging Face, are without it.

Departures from the tutorials' systems: one row instead of two layers, so that transformers can load
the result; every pair of answers with scores as they are, not cut to integers; prompts weigh the
same in the whole optimizer step; one EOS, not two.
"""

from typing import TYPE_CHECKING, Any

from alignctl import console
from alignctl.config.run import RewardConfig
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import TUNED, rows
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    from alignctl.algorithms.loss import Loss
    from alignctl.checkpoints.source import Source
    from alignctl.stages.shared.training import Task


def say_which_head(_: RewardConfig, source: "Source", *__: Any) -> None:
    """Say that a model gets a new head, if it does."""
    if source.role == "policy":
        console.say("head: a new one, since the model is a policy")


def work(config: RewardConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, train, validate, save."""
    from alignctl.algorithms.reward import report
    from alignctl.stages.shared import training

    training.run(
        STAGE,
        config,
        folder,
        report=lambda result: report(result.metrics),
        score_offset=_compute_score_offset,
    )


def make_loss(config: RewardConfig) -> "Loss":
    """Make what is minimised."""
    from alignctl.algorithms.reward import BradleyTerry

    return BradleyTerry(config.loss.margin, config.loss.centering)


def _compute_score_offset(task: "Task") -> float:
    """Compute minus the mean score of the best answer to each training prompt."""
    from alignctl.data import order

    data: Any = task.data
    best = data.train.best_answers()
    batches = order.validation_batches(
        best,
        micro_batch_size=task.config.batch.micro_batch_size,
        dp_rank=task.engine.data_parallel_rank,
        dp_size=task.engine.data_parallel_size,
    )
    scores = task.engine.document_outputs(batches, data.num_documents)
    return -float(scores[best.members].mean())


STAGE = Stage(
    name="reward",
    config=RewardConfig,
    help="""Train a reward model on preferences: better answers get higher scores.

    Answers to one prompt are compared in pairs.
    """,
    examples=(
        "alignctl reward --preset llama2-7b --load runs/llama2-7b-sft --data data/pairs",
        "alignctl reward --preset llama2-70b --load runs/sft --data data/pairs \\",
        "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
        "alignctl reward --preset llama2-70b --simulate",
    ),
    inputs=rows(TUNED, "reward"),
    rows="preferences",
    work=work,
    starts_from=("policy", "reward"),
    after_rows=say_which_head,
    loss=make_loss,
    following="alignctl rlhf{preset} --load {load} --reward-load {run}",
)

if __name__ == "__main__":
    STAGE.run_rank()
