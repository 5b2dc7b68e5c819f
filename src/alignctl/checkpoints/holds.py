"""Checkpoints of one run that another run needs: marked beside them, so that rotation spares them.

A run removes its older checkpoints (`checkpoint.keep`) while others may have started from one of
them: a resumed run needs its reference again, and adapters their base. A mark is a hidden file in
the folder of checkpoints, `.held_iter_0000100_KEY`, which says who needs the checkpoint.
"""

import hashlib
import json
from pathlib import Path

from alignctl import atomic
from alignctl.run_folder import LATEST, RunFolder


def is_rotated(checkpoint: Path) -> bool:
    """Tell whether a folder is a checkpoint of a run, which removes its oldest ones in time."""
    return checkpoint.name.startswith("iter_") and (checkpoint.parent / LATEST).is_file()


def hold(checkpoint: Path, run: RunFolder) -> None:
    """Mark a checkpoint as needed by a run.

    Raises:
        FileNotFoundError: It has been removed already.
        OSError: The folder of checkpoints is not writable.
    """
    holder = str(run.path.resolve())
    key = hashlib.sha256(holder.encode()).hexdigest()[:12]
    mark = checkpoint.with_name(f".held_{checkpoint.name}_{key}")
    atomic.write_text(mark, json.dumps({"run": holder}) + "\n")
    # Whoever removes it looks for marks once more after it has taken the name away.
    if not checkpoint.is_dir():
        mark.unlink()
        raise FileNotFoundError(checkpoint)


def is_held(checkpoint: Path) -> bool:
    """Tell whether a run still needs a checkpoint; remove marks of runs that no longer do."""
    marks = list(checkpoint.parent.glob(f".held_{checkpoint.name}_*"))
    done = [mark for mark in marks if _is_over(mark)]
    for mark in done:
        mark.unlink(missing_ok=True)
    return len(done) < len(marks)


def _is_over(mark: Path) -> bool:
    """Tell whether the run of a mark is gone, or finished with weights of its own."""
    try:
        run = RunFolder(Path(json.loads(mark.read_text(encoding="utf-8"))["run"]))
    except FileNotFoundError:
        return True  # its holder was quicker
    except (ValueError, KeyError, TypeError):
        return False  # of a later version, perhaps
    if not run.path.is_dir():
        # A disk that is not mounted here is no run that was removed.
        return run.path.parent.is_dir()
    has_adapters = run.config.exists() and run.read_config().get("lora") is not None
    return run.result.exists() and not has_adapters
