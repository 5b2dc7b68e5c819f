"""Online DPO: the policy's own answers are scored, and the better ones preferred.

    alignctl online-dpo --preset llama2-7b --load runs/sft --reward-load runs/reward \
      --data data/prompts

Departures from the tutorials' systems: log-probabilities of whole answers are summed, not divided
by their length; a prompt without two different scores is skipped and counted, and disturbs no
other.
"""

import sys

from alignctl.config.on_policy_run import OnlineDPOConfig
from alignctl.launch import worker
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import on_policy


def launch(config: OnlineDPOConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""
    return on_policy.launch(config, nodes=nodes, dry_run=dry_run, resume=resume)


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, episodes, validate, save."""
    from alignctl.on_policy.online_dpo import OnlineDPO

    config = OnlineDPOConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    on_policy.run(config, folder, OnlineDPO.make)


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
