"""Align a policy by reinforcement learning (PPO) with a reward model.

    alignctl rlhf --preset llama2-7b --load runs/sft --reward-load runs/reward --data data/prompts

    answers, scores                      sampling, reward model
    log p_policy, log p_reference        per token, at the sampling's temperature
    rewards = -beta k1, + score at the end
    advantages, returns                  GAE over the answers' tokens; whitened once, over all ranks
    value update, policy update          clipped, in mini batches

Departures from the tutorials' systems: the KL penalty is not divided by the answer's length;
advantages are whitened over answers' tokens only, once per episode; the adaptive controller is fed
the KL to the reference; nothing is dropped out.
"""

from typing import TYPE_CHECKING

from alignctl.config.inputs import Input
from alignctl.config.on_policy_run import RLHFConfig
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.inputs import prompts
from alignctl.stages.shared.stage import Stage

if TYPE_CHECKING:
    from alignctl.data.prompt_store import PromptData
    from alignctl.on_policy.loop import Learner
    from alignctl.on_policy.models import Models


def work(config: RLHFConfig, folder: RunFolder) -> None:
    """Do one rank's work: load or resume, episodes, validate, save."""
    from alignctl.stages.shared import on_policy

    on_policy.run(STAGE, config, folder)


def make_learner(config: RLHFConfig, models: "Models", data: "PromptData") -> "Learner":
    """Make what learns from an episode."""
    from alignctl.on_policy.ppo import PPO

    return PPO.make(config, models, data)


STAGE = Stage(
    name="rlhf",
    config=RLHFConfig,
    help="""Align a policy by reinforcement learning (PPO) with a reward model.

    It answers prompts, the reward model scores the answers, and a value model says what was to be
    expected.
    """,
    examples=(
        "alignctl rlhf --preset llama2-7b --load runs/sft --reward-load runs/reward \\",
        "  --data data/prompts",
        "alignctl rlhf --preset llama2-70b --simulate",
    ),
    inputs=(*prompts("alignment"), Input("value.load", ("value.load",))),
    rows="prompts",
    work=work,
    learner=make_learner,
)

if __name__ == "__main__":
    STAGE.run_rank()
