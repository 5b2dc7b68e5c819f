"""One rank of a stage under the sanitizer: what torchrun starts in the place of the stage.

    python -m tests.sanitizer.rank RUN

Writes RUN/sanitizer_rank_N.json: mixes, and waits by window, phase and line. A window is a step of
the run: an optimizer step with its batch and its log, or an episode.
"""

import json
import os
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from alignctl.launch import worker
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.stage import load_stage
from tests.sanitizer.places import Operators, Places, is_backward, watch


def work(folder: RunFolder) -> None:
    places = watch()
    text = folder.config.read_text(encoding="utf-8")
    config = json.loads(text)
    stage = load_stage(config["stage"])
    _tell_phases(places)
    if config["engine"] == "deepspeed":
        _watch_deepspeed(places)
    try:
        with Operators(places):
            stage.work(stage.config.model_validate_json(text), folder)
    finally:
        report = {
            "mixes": dict(places.mixes),
            "waits": [[*where, count] for where, count in places.waits.items()],
            "updates": dict(places.updates),
        }
        rank = os.environ["RANK"]
        (folder.path / f"sanitizer_rank_{rank}.json").write_text(json.dumps(report, indent=1))


def _within(places: Places, owner: Any, name: str, phase: str | None) -> None:
    """Counts a method's waits under a phase; None: each call is a window of its own."""
    plain = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        before = places.window, places.phase
        if phase is None:
            places.windows += 1
            places.window = places.windows
        else:
            places.phase = phase
            places.updates[places.window] += name == "train_step"
        try:
            return plain(*args, **kwargs)
        finally:
            places.window, places.phase = before

    setattr(owner, name, method)


def _tell_phases(places: Places) -> None:
    """Tells what waits in the steps of a run, in its updates, and in the loops of their batches."""
    from alignctl.engines.megatron.engine import MegatronEngine
    from alignctl.engines.megatron.forward_backward import LossPass
    from alignctl.models import flex_attention
    from alignctl.on_policy.loop import Loop
    from alignctl.rollouts import vllm
    from alignctl.stages.shared import training

    _within(places, training, "_step", None)
    _within(places, Loop, "_episode", None)
    _within(places, MegatronEngine, "train_step", "update")
    _within(places, MegatronEngine, "_schedule", "loop")
    _within(places, LossPass, "finalize_gradients", "update")
    _within(places, vllm.Rollout, "generate", "sampling")
    _within(places, vllm.Rollout, "load_weights", "push")
    anything: Any = vllm
    anything.IS_GPU = False  # vLLM itself sees none, and is started as a CPU wants it
    anything = flex_attention
    anything.flex_attention = _attend


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: Any,
    block_mask: BlockMask,
    enable_gqa: bool,
) -> Tensor:
    """Computes in operators, which are seen, what FlexAttention's kernel computes at once.

    Its mask and its scores are ours: what they read has to lie where the queries do.
    """
    heads, total = query.shape[1:3]
    if enable_gqa:
        key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
    head, *places = torch.meshgrid(
        *(torch.arange(size, device=query.device) for size in (heads, total, total)), indexing="ij"
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    batch = query.new_zeros((), dtype=torch.int64)
    if score_mod is not None:
        scores = score_mod(scores, batch, head, *places)
    is_seen = block_mask.mask_mod(batch, head, *places)
    attended: Tensor = scores.masked_fill(~is_seen, -torch.inf).softmax(-1) @ value
    return attended


def _watch_deepspeed(places: Places) -> None:
    """Tells DeepSpeed that its tensors lie on "cuda", and counts what it waits for."""
    from alignctl.engines.deepspeed.engine import DeepSpeedEngine
    from alignctl.engines.deepspeed.library import deepspeed

    accelerator: Any = type(deepspeed.accelerator.get_accelerator())

    def device_name(*_: Any) -> str:
        # As Megatron's current device: the mode that knows "cuda" does not see backward passes.
        return "cpu" if is_backward() else "cuda"

    accelerator.device_name = accelerator.current_device_name = device_name
    accelerator.on_accelerator = lambda _, tensor: tensor.device.type == "cuda"
    accelerator.synchronize = staticmethod(places.synchronize)
    _within(places, DeepSpeedEngine, "train_step", "update")
    _within(places, DeepSpeedEngine, "_terms", "loop")
    _within(places, deepspeed.DeepSpeedEngine, "backward", "loop")


if __name__ == "__main__":
    worker.run(work, sys.argv[1])
