"""The folder of prepared data that the ranks of a run read."""

from collections.abc import Callable
from pathlib import Path

from alignctl import atomic
from alignctl.errors import UserError
from alignctl.launch.attempt import Attempt
from alignctl.run_folder import RunFolder

_POINTER = "prepared"


def prepared_data(folder: RunFolder) -> Path:
    """Return the folder that `choose_data` has chosen."""
    return folder.data / (folder.data / _POINTER).read_text(encoding="utf-8")


def choose_data(
    folder: Path, what: str, attempt: Attempt, goes_on: Callable[[Path, Path], bool]
) -> None:
    """Make the ranks of a run read a prepared folder, which `prepared_data` finds from now on.

    Args:
        folder: The folder, in the run's own of data.
        what: What it was prepared from.
        attempt: The run folder.
        goes_on: Tells of the folder that was read so far, and of this one, whether a run may go on
            with this one.

    Raises:
        UserError: The run has steps behind it that read another one.
    """
    pointer = attempt.folder.data / _POINTER
    before = pointer.read_text(encoding="utf-8") if pointer.exists() else folder.name
    if attempt.folder.latest_step() and not goes_on(folder.with_name(before), folder):
        raise UserError(
            f"{what} or the tokenizer have changed since this run was started: its steps would "
            "not be those of the data it began with",
            f"put them back, or start a new run: --load {attempt.folder.path} --output NEW",
        )
    atomic.write_text(pointer, folder.name)
