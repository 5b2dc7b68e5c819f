"""Align a policy by comparing answers to one prompt with their mean (GRPO).

    alignctl grpo --preset llama2-7b --load runs/sft --data data/math
    alignctl grpo --preset llama2-7b --load runs/sft --data data/prompts \
      --reward-load runs/reward score.source=dense_only

Group-relative policy optimisation. No value model: an answer's advantage is its score against the
mean of its group (DeepSeekMath, arXiv 2402.03300, and its relatives: see `loss`, `baseline` and
`experience.max_refills`).
"""

from typing import TYPE_CHECKING

from alignctl.config.on_policy_run import GRPOConfig
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import prompts
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    from alignctl.data.prompt_store import PromptData
    from alignctl.on_policy.loop import Learner
    from alignctl.on_policy.models import Models


def work(config: GRPOConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, episodes, validate, save."""
    from alignctl.stages.shared import on_policy

    on_policy.run(STAGE, config, folder)


def make_learner(config: GRPOConfig, models: "Models", data: "PromptData") -> "Learner":
    """Make what learns from an episode."""
    from alignctl.on_policy.grpo import GRPO

    return GRPO.make(config, models, data)


STAGE = Stage(
    name="grpo",
    config=GRPOConfig,
    help="""Align a policy by comparing answers to one prompt with their mean (GRPO).

    Answers are scored by the rule that a row names, by a reward model, or by both.
    """,
    examples=(
        "alignctl grpo --preset llama2-7b --load runs/sft --data data/math",
        "alignctl grpo --preset llama2-7b --load runs/sft --data data/math \\",
        "  --reward-load runs/reward score.source=merge",
    ),
    inputs=prompts("math"),
    rows="prompts",
    work=work,
    learner=make_learner,
)

if __name__ == "__main__":
    STAGE.run_rank()
