"""One rank of a stage under the sanitizer: what torchrun starts in the place of the stage.

    python -m tests.sanitizer.rank RUN

Writes RUN/sanitizer_rank_N.json: mixes, and waits by phase and line.
"""

import json
import os
import sys
from typing import Any

import torch

from alignctl.engines.megatron import cpu
from alignctl.launch import worker
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.stage import load_stage
from tests.sanitizer.places import Operators, Places, is_backward, make_mode


def work(folder: RunFolder) -> None:
    from alignctl.engines import device

    device.DEVICE = torch.device("cuda")  # before anything else imports it
    places = Places()
    cpu.load()
    anything: Any = cpu
    anything._CudaMeansCpu = make_mode(places)
    cpu.install()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: cpu.CPU if is_backward() else device.DEVICE
    _count_steps(places)
    text = folder.config.read_text(encoding="utf-8")
    stage = load_stage(json.loads(text)["stage"])
    try:
        with Operators(places):
            stage.work(stage.config.model_validate_json(text), folder)
    finally:
        report = {
            "mixes": dict(places.mixes),
            "waits": [[*where, count] for where, count in places.waits.items()],
        }
        rank = os.environ["RANK"]
        (folder.path / f"sanitizer_rank_{rank}.json").write_text(json.dumps(report, indent=1))


def _count_steps(places: Places) -> None:
    """Tells waits inside an optimizer step from others, and those of its micro batches apart."""
    from alignctl.engines.megatron.engine import MegatronEngine

    def within(name: str, phase: str) -> None:
        plain = getattr(MegatronEngine, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            before, places.phase = places.phase, phase
            try:
                return plain(*args, **kwargs)
            finally:
                places.phase = before

        setattr(MegatronEngine, name, method)

    within("train_step", "step")
    within("evaluate", "evaluation")


if __name__ == "__main__":
    worker.run(work, sys.argv[1])
