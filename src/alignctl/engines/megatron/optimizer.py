"""Megatron-Core's AdamW: made for an engine's model, clipped, and seen as tensors."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from alignctl.config.precision import LossScale
from alignctl.config.sections import Optimizer
from alignctl.engines.device import IS_GPU
from alignctl.errors import UserError


def create(
    wrapped: Any,
    groups: ProcessGroupCollection,
    settings: Optimizer,
    *,
    dtype: torch.dtype,
    is_distributed: bool,
    loss_scale: LossScale,
) -> Any:
    """Create AdamW over the weights as they are, with float32 master weights for smaller ones.

    Args:
        wrapped: The model in Megatron's DistributedDataParallel.
        groups: Its process groups.
        settings: Of AdamW.
        dtype: Of the weights.
        loss_scale: Of float16 weights.
        is_distributed: Whether its state is spread over data-parallel ranks.
    """
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            initial_loss_scale=loss_scale.initial,
            min_loss_scale=loss_scale.minimum,
            loss_scale_window=loss_scale.growth_interval,
            hysteresis=loss_scale.hysteresis,
            params_dtype=dtype,
            use_distributed_optimizer=is_distributed,
            clip_grad=settings.clip_grad or 0.0,
        ),
        [wrapped],
        use_gloo_process_groups=False,
        pg_collection=groups,
    )
    for group in optimizer.param_groups:
        if not IS_GPU and "fused" in group:
            # torch's AdamW in one pass over memory instead of eight. (On GPUs Megatron takes
            # Transformer Engine's.)
            group["fused"] = True
    return optimizer


def check_buckets(wrapped: Any, num_copies: int) -> None:
    """Check that of each bucket of gradients every copy has some: it could not be saved otherwise.

    Args:
        wrapped: The model in Megatron's DistributedDataParallel, for its distributed optimizer.
        num_copies: Of the model, over which each bucket is spread.

    Raises:
        UserError: All that a copy has of a bucket is what fills it up.
    """
    for bucket in (bucket for buffer in wrapped.buffers for bucket in buffer.buckets):
        share = bucket.grad_data.numel() // num_copies
        if bucket.numel_unpadded <= (num_copies - 1) * share:
            raise UserError(
                f"parallel.overlap_grad_reduce: a bucket of gradients has {bucket.numel_unpadded} "
                f"weights, too few for {num_copies} copies: Megatron-Core could not save the "
                "optimizer's state",
                "leave parallel.overlap_grad_reduce out, or take another parallel.pp",
            )


def adamws(optimizer: Any) -> list[torch.optim.AdamW]:
    """List the optimizers that are torch's own; Transformer Engine's keep other state."""
    found = [each.optimizer for each in optimizer.chained_optimizers]
    return [each for each in found if isinstance(each, torch.optim.AdamW)]


def allocate_moments(optimizer: Any) -> None:
    """Give an optimizer that has not taken a step the moments that it would begin with.

    They are made in the first step only; a checkpoint before it is to hold them too, and room for
    them is needed where one is loaded. (The policy of `rlhf` waits while the value model learns.)
    """
    own = adamws(optimizer)
    for each in optimizer.chained_optimizers:
        if each.optimizer not in own:
            each.init_state_fn(each.optimizer, each.config)
            continue
        for group in each.optimizer.param_groups:
            for parameter in group["params"]:
                if not each.optimizer.state[parameter]:
                    each.optimizer.state[parameter] = {
                        "step": torch.zeros(()),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def clip(optimizer: Any, settings: Optimizer, grad_norm: float) -> None:
    """Scale all gradients down to the largest norm that is allowed, if there is one."""
    parameters = optimizer.get_parameters()
    if settings.clip_grad is not None and parameters:
        clip_grad_by_total_norm_fp32(parameters, settings.clip_grad, grad_norm)


def tensors(optimizer: Any) -> Iterator[Tensor]:
    """Yield the master weights and moments that this rank holds."""
    for group in optimizer.param_groups:
        yield from group["params"]
    for _, state in optimizer.state.items():  # the state of chained ones has no `values`
        yield from (each for each in state.values() if isinstance(each, Tensor))
