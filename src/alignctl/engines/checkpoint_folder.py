"""The folder of a run's checkpoints: each is complete or absent, and the newest is pointed to.

One rank calls these functions, between two barriers.
"""

import shutil
from pathlib import Path

from alignctl import atomic
from alignctl.checkpoints import holds
from alignctl.run_folder import LATEST, RunFolder


def final_name(checkpoints: Path, step: int) -> Path:
    """Return the path of a step's checkpoint once it is complete."""
    return checkpoints / f"iter_{step:07d}"


def partial_name(checkpoints: Path, step: int) -> Path:
    """Return the path of a step's checkpoint while it is written."""
    return checkpoints / f".iter_{step:07d}.partial"


def start(checkpoints: Path, step: int) -> None:
    """Make the folder that a checkpoint is written into; remove what killed saves have left."""
    RunFolder(checkpoints.parent).remove_unfinished()
    partial_name(checkpoints, step).mkdir(parents=True)


def finish(checkpoints: Path, step: int, *, keep: int | None) -> None:
    """Give a checkpoint its name, point to it, and remove the oldest.

    Args:
        checkpoints: The folder of checkpoints.
        step: Of the checkpoint, which is complete but for its name.
        keep: How many of the newest stay; None for all.

    Raises:
        OSError: The disk is full or not writable; older checkpoints are untouched.
    """
    final = final_name(checkpoints, step)
    _remove(final)  # of an attempt that was killed before it could point to it
    atomic.commit_folder(partial_name(checkpoints, step), final)
    atomic.write_text(checkpoints / LATEST, str(step))
    _remove_old(checkpoints, step, keep)


def go_back(checkpoints: Path, step: int) -> None:
    """Make an older checkpoint the newest again; later ones are saved anew, not taken as done.

    Args:
        checkpoints: The folder of checkpoints; it may not exist yet.
        step: Of the checkpoint that is there, or 0 for none.
    """
    if step:
        atomic.write_text(checkpoints / LATEST, str(step))
    else:
        (checkpoints / LATEST).unlink(missing_ok=True)


def _remove(checkpoint: Path, *, unless_held: bool = False) -> None:
    """Remove a checkpoint: rename it first, so that a part of it is never taken for a whole."""
    if not checkpoint.exists() or (unless_held and holds.is_held(checkpoint)):
        return
    hidden = checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.removed"))
    if unless_held and holds.is_held(checkpoint):  # since a moment ago
        hidden.rename(checkpoint)
        return
    shutil.rmtree(hidden)


def _remove_old(checkpoints: Path, step: int, keep: int | None) -> None:
    """Remove all checkpoints but the newest, the best, and those that other runs need.

    One of a later step, which nobody points to, does not count.
    """
    newest_first = sorted(checkpoints.glob("iter_" + 7 * "[0-9]"), reverse=True)
    finished = [each for each in newest_first if int(each.name.removeprefix("iter_")) <= step]
    best = RunFolder(checkpoints.parent).best
    kept = best.resolve().name if best.is_symlink() else None
    for old in finished[keep:] if keep else []:
        if old.name != kept:
            _remove(old, unless_held=True)
