"""What follows a step: a validation, a checkpoint, a link to the best one, the end of patience."""

from collections.abc import Callable

import torch.distributed as dist

from alignctl.config.run import TrainingConfig
from alignctl.engines.best import Watch, link_best
from alignctl.run_folder import RunFolder


def conclude(
    config: TrainingConfig,
    folder: RunFolder,
    watch: Watch,
    step: int,
    total: int,
    *,
    validate: Callable[[], bool],
    save: Callable[[bool], None],
    is_stop_requested: Callable[[], bool],
    note: Callable[[str], None],
) -> bool:
    """Validate and save after a step where it is time; tell whether the run was asked to stop here.

    All ranks call it, and find the same.

    Args:
        config: The run.
        folder: Its folder.
        watch: What is known of its validations.
        step: Steps done, or episodes.
        total: Those of the whole run.
        validate: Measures on held-out rows, and tells whether the model is better than ever before.
        save: Writes a checkpoint; it is told whether that is the last one or the best.
        is_stop_requested: Tells whether any rank was asked to stop.
        note: Tells a reader.
    """
    is_best = False
    if step == total or step % config.train.eval_interval == 0:
        is_best = validate() and watch.keeps_best
    is_last = step == total or watch.is_over
    is_stopping = is_stop_requested() and not is_last
    if is_last or is_best or is_stopping or step % config.checkpoint.save_interval == 0:
        save(is_last or is_best)
    if is_best:
        if dist.get_rank() == 0:
            link_best(folder, step)
        note(watch.describe_best())
    if is_last and step < total:
        note(watch.describe_end(step, total))
    if is_stopping:
        note(f"stopped after step {step} of {total}, as asked")
    return is_stopping
