"""Align a policy by preferring the better ones of its own answers.

    alignctl online-dpo --preset llama2-7b --load runs/sft --reward-load runs/reward \
      --data data/prompts

Departures from the tutorials' systems: log-probabilities of whole answers are summed, not divided
by their length; a prompt without two different scores is skipped and counted, and disturbs no
other.
"""

from typing import TYPE_CHECKING

from alignctl.config.on_policy_run import OnlineDPOConfig
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import prompts
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    from alignctl.data.prompt_store import PromptData
    from alignctl.on_policy.loop import Learner
    from alignctl.on_policy.models import Models


def work(config: OnlineDPOConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, episodes, validate, save."""
    from alignctl.stages.shared import on_policy

    on_policy.run(STAGE, config, folder)


def make_learner(config: OnlineDPOConfig, models: "Models", data: "PromptData") -> "Learner":
    """Make what learns from an episode."""
    from alignctl.on_policy.online_dpo import OnlineDPO

    return OnlineDPO.make(config, models, data)


STAGE = Stage(
    name="online-dpo",
    config=OnlineDPOConfig,
    help="""Align a policy by preferring the better ones of its own answers.

    Several answers to each prompt are scored by a reward model.
    """,
    examples=(
        "alignctl online-dpo --preset llama2-7b --load runs/sft --reward-load runs/reward \\",
        "  --data data/prompts pairs=all",
    ),
    inputs=prompts("alignment"),
    rows="prompts",
    work=work,
    learner=make_learner,
)

if __name__ == "__main__":
    STAGE.run_rank()
