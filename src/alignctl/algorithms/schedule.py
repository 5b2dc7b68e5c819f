"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from alignctl.config.sections import Optimizer


def learning_rate(step: int, optimizer: Optimizer, *, total_steps: int) -> float:
    """Return the learning rate of a step, steps counted from 0.

    As Megatron-Core's OptimizerParamScheduler, which knows the steps that were taken before: the
    first step of a warm-up has 0, and the one after its last has `lr`. From there cosine or linear
    decay to `min_lr` at step `decay_steps` (default: the end of the run, so that the last step is
    one before it), and `min_lr` behind it; or constant.

    Args:
        step: The optimizer step about to be taken.
        optimizer: Its lr, min_lr, schedule, warm-up and decay_steps act here.
        total_steps: Length of the run, the default for `decay_steps`.
    """
    warmup = optimizer.warmup(total_steps)
    if step < warmup:
        return optimizer.lr * step / warmup
    if optimizer.schedule == "constant":
        return optimizer.lr
    span = max(1, (optimizer.decay_steps or total_steps) - warmup)
    progress = min(1.0, (step - warmup) / span)
    share = (
        1 - progress if optimizer.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * share
