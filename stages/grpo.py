"""Group-relative policy optimisation: answers to one prompt are compared with each other.

    alignctl grpo --preset llama2-7b --load runs/sft --data data/math
    alignctl grpo --preset llama2-7b --load runs/sft --data data/prompts \
      --reward-load runs/reward score.source=dense_only

No value model: an answer's advantage is its score against the mean of its group (DeepSeekMath,
arXiv 2402.03300, and its relatives: see `loss`, `baseline` and `experience.max_refills`).
"""

import sys

from alignctl.config.on_policy_run import GRPOConfig
from alignctl.launch import worker
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import on_policy


def launch(config: GRPOConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""
    return on_policy.launch(config, nodes=nodes, dry_run=dry_run, resume=resume)


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, episodes, validate, save."""
    from alignctl.on_policy.grpo import GRPO

    config = GRPOConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    on_policy.run(config, folder, GRPO.make)


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
