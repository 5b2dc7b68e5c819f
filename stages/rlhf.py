"""Reinforcement learning from human feedback: proximal policy optimisation (PPO).

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

import sys

from alignctl.config.on_policy_run import RLHFConfig
from alignctl.launch import worker
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import on_policy


def launch(config: RLHFConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""
    return on_policy.launch(config, nodes=nodes, dry_run=dry_run, resume=resume)


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, episodes, validate, save."""
    from alignctl.on_policy.ppo import PPO

    config = RLHFConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    on_policy.run(config, folder, PPO.make)


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
