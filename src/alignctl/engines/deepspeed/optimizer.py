"""What this project asks of DeepSpeed's optimizers, which have three classes for it.

ZeRO-1 in bf16 without offload is BF16_Optimizer, ZeRO-1 and 2 otherwise and ZeRO-3 have a class
each. All of them hold flat float32 master weights, one tensor per parameter group (or part of
one), over which torch's AdamW keeps its moments.
"""

import math
from typing import Any

import torch
from torch import Tensor

from alignctl.config.precision import LossScale
from alignctl.engines.deepspeed.library import BF16_Optimizer, DynamicLossScaler

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's loss scaler remembers."""


class ZeroOptimizer:
    """The optimizer of one DeepSpeed engine.

    Attributes:
        scaler: What losses are multiplied by in float16; None in other precisions.
    """

    def __init__(self, engine: Any, adamw: torch.optim.AdamW, loss_scale: LossScale | None) -> None:
        """Take over the optimizer of an engine that was just initialised.

        Args:
            engine: DeepSpeed's own engine.
            adamw: The optimizer that it was given.
            loss_scale: How losses are scaled in float16; None in other precisions.
        """
        self._engine, self._adamw = engine, adamw
        self._zero: Any = engine.optimizer
        self._is_partitioned = hasattr(self._zero, "fp16_partitioned_groups_flat")
        self.scaler: Any = None
        if loss_scale is not None:
            # DeepSpeed's configuration knows powers of two only, and whole numbers.
            self.scaler = self._zero.loss_scaler = DynamicLossScaler(
                init_scale=loss_scale.initial,
                scale_window=loss_scale.growth_interval,
                min_scale=loss_scale.minimum,
                delayed_shift=loss_scale.hysteresis,
                consecutive_hysteresis=False,
                raise_error_at_min_scale=False,
            )
            self._grow_as_megatron()

    def step(self, divisor: float, *, learning_rate: float) -> float | None:
        """Divide the gradients, clip them, and take a step.

        Args:
            divisor: Of the gradients that were accumulated.
            learning_rate: Of the step.

        Returns:
            The norm of the whole gradient before clipping; None if it is not finite, and then
            nothing was changed but the loss scale, and the gradients are forgotten.
        """
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        if isinstance(self._zero, BF16_Optimizer):
            for gradients in self._zero.fp32_groups_gradients_flat:
                gradients.div_(divisor)
            self._engine.step()
        else:
            # A loss scale is what gradients are divided by before they are clipped. Set while
            # there is no loss, it scales none up.
            scale = divisor if self.scaler is None else divisor * self.scaler.cur_scale
            self._zero.custom_loss_scaler, self._zero.external_loss_scale = True, scale
            self._engine.step()
            self._zero.custom_loss_scaler, self._zero.external_loss_scale = False, None
            if self._zero.overflow and not self._is_partitioned:
                # With offload DeepSpeed 0.19.8 adds those of the next step to them.
                self._zero.averaged_gradients = dict.fromkeys(self._zero.averaged_gradients)
            if self._zero.overflow and self.scaler is not None:
                self._grow_as_megatron()
        norm = math.inf if self._zero.overflow else float(self._zero._global_grad_norm)
        return norm if math.isfinite(norm) else None

    def _grow_as_megatron(self) -> None:
        """Let the scale double a step earlier: DeepSpeed does not count the first finite one."""
        self.scaler.last_overflow_iter -= 1

    @property
    def masters(self) -> list[Tensor]:
        """Flat float32 weights, this rank's shares; other layouts cut them differently."""
        for name in (
            "fp32_partitioned_groups_flat",
            "fp32_groups_flat_partition",
            "single_partition_of_fp32_groups",
        ):
            if hasattr(self._zero, name):
                return list(getattr(self._zero, name))
        raise AssertionError(type(self._zero))

    def state_dict(self) -> dict[str, Tensor]:
        """Collect master weights, moments, step counters and loss scale by name, without copies.

        Moments are made in the first step only; before it they are those that it begins with.
        """
        found = {}
        for number, master in enumerate(self.masters):
            found[f"{number}.master"] = master.detach()
            if not (moments := self._adamw.state[master]):
                moments |= {
                    "step": torch.zeros((), device=master.device),
                    "exp_avg": torch.zeros_like(master),
                    "exp_avg_sq": torch.zeros_like(master),
                }
            for name, value in moments.items():
                found[f"{number}.{name}"] = value
        if self.scaler is not None:
            numbers = [getattr(self.scaler, name) for name in _SCALER]
            found["loss_scale"] = torch.tensor(numbers, dtype=torch.float64)
        return found

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave, and the model's weights from the master weights."""
        with torch.no_grad():
            for number, master in enumerate(self.masters):
                master.copy_(state[f"{number}.master"])
                self._adamw.state[master] = {
                    # torch's fused AdamW counts its steps where the weights are.
                    name: state[f"{number}.{name}"].to(master.device)
                    for name in ("step", "exp_avg", "exp_avg_sq")
                }
            self._refresh_weights()
        if self.scaler is not None:
            scale, *counts = state["loss_scale"].tolist()
            values = scale, *map(int, counts)
            for name, value in zip(_SCALER, values, strict=True):
                setattr(self.scaler, name, value)

    def _refresh_weights(self) -> None:
        """Copy the master weights of all ranks into the model, as the end of a step does."""
        if not self._is_partitioned:
            self._zero.update_lp_params()
            return
        self._zero._partition_all_parameters()
        for number in range(len(self.masters)):
            self._zero._reassign_or_swap_out_partitioned_parameters(number)
        if kept := self._zero.persistent_parameters:
            kept[0].all_gather(kept)
