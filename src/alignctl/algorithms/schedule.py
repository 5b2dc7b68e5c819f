"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from alignctl.config.sections import Optimizer


def learning_rate(step: int, optimizer: Optimizer, *, total_steps: int) -> float:
    """Learning rate of a step, steps counted from 0.

    Warm-up is linear and reaches `lr` at step `warmup_steps` (Megatron's convention: the first
    step of a warm-up has lr / warmup_steps). Then cosine or linear decay to `min_lr` at
    `decay_steps` (default: the last step), and `min_lr` behind it; or constant.

    Args:
        step: The optimizer step about to be taken.
        optimizer: Its lr, min_lr, schedule, warmup_steps and decay_steps act here.
        total_steps: Length of the run, the default for `decay_steps`.
    """
    warmup = optimizer.warmup_steps
    if step < warmup:
        return optimizer.lr * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.lr
    span = max(1, (optimizer.decay_steps or total_steps) - warmup)
    progress = min(1.0, (step - warmup) / span)
    share = (
        1 - progress if optimizer.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * share
