"""Opening a run folder for one attempt at the run: new, resumed, or finished long ago."""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignctl import atomic, console
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.launch import environment
from alignctl.launch.fingerprint import Config, find_differences, flatten
from alignctl.run_folder import RunFolder, read_object

MAY_CHANGE = (
    *("output", "checkpoint", "launch", "tracking", "profile"),
    *("train.eval_interval", "train.log_interval", "train.patience"),
    *("roles.reward", "roles.reference"),
)
"""Settings, with all below them, that a resume may change: the numbers do not depend on them, but
for the order of sums in models that learn nothing, and so have no state at a layout."""

MAY_GROW = ("train.steps", "train.epochs", "train.tokens")
"""Settings of which a resume may raise one: the run then goes on beyond its old end."""

_MAX_DIFFERENCES_SHOWN = 12


@dataclass(frozen=True)
class Attempt:
    """A run folder that this process holds, for as long as the `with` block lasts."""

    folder: RunFolder
    state: Literal["new", "resumed", "finished"]
    """`finished`: the result is there already and nothing is to be run."""
    number: int
    """Counts the starts of the run, from 1."""
    lock: int
    """File descriptor of the lock; torchrun inherits it, so that the lock outlives a launcher
    that was killed for as long as ranks may still be writing."""

    def describe(self) -> str:
        """Say in one line what is going to happen."""
        path = self.folder.path
        if self.state == "finished":
            return f"{path} holds this run already, finished; choose another --output to repeat it"
        if self.state == "new":
            return f"run folder: {path}"
        step = self.folder.latest_step()
        where = f"at step {step}" if step else "from the start, as nothing was saved yet"
        return f"resuming {path} {where} (attempt {self.number})"


@contextlib.contextmanager
def create_or_resume(
    path: Path,
    config: Config,
    *,
    argv: Sequence[str],
    resume: bool = True,
    node_rank: int = 0,
    wait_seconds: float = 600.0,
    check_longer: Callable[[], None] = lambda: None,
) -> Iterator[Attempt]:
    """Open a run folder and keep other launchers out of it until the block ends.

    Node 0 creates the folder and clears what an earlier attempt left (`stop`, errors); the other
    nodes, which share it, wait until its configuration is there and check that it is theirs.

    Args:
        path: The run folder; it may not exist yet.
        config: The resolved configuration.
        argv: The command line that is running, for `command.txt`.
        resume: Whether an existing run may be continued.
        node_rank: Which node this launcher is on.
        wait_seconds: How long the other nodes wait for node 0.
        check_longer: Refuses a run that is made longer where it cannot be; nothing has been changed
            by then.

    Yields:
        The attempt; when its state is `finished` there is nothing to run.

    Raises:
        UserError: When the folder is in use, is not a run, or holds a run with other settings.
        RunError: When the disk is full, or node 0 does not create the folder in time.
    """
    folder = RunFolder(path)
    with contextlib.ExitStack() as stack:
        # Errors of the block itself are not ours to explain: it runs outside of the `try`.
        try:
            if node_rank > 0:
                _wait_for_node_0(folder, wait_seconds)
            attempt = _open(folder, config, argv, resume, node_rank, check_longer, stack)
        except OSError as error:
            raise _explain(folder, error) from error
        yield attempt


def _open(
    folder: RunFolder,
    config: Config,
    argv: Sequence[str],
    resume: bool,
    node_rank: int,
    check_longer: Callable[[], None],
    stack: contextlib.ExitStack,
) -> Attempt:
    _refuse_foreign_folder(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(_lock(folder, node_rank))
    exists = folder.config.exists()
    if exists:
        # Node 0 may have created the folder a moment ago, so the others cannot tell new from old.
        resume = resume or node_rank > 0
        is_longer = check_same_run(folder, config, resume=resume, check_longer=check_longer)
        if folder.read_result() is not None and not is_longer:
            return Attempt(folder, "finished", _attempts_so_far(folder), lock)
    number = _attempts_so_far(folder)
    if node_rank == 0:
        number += 1
        _start_attempt(folder, config, argv, number)
    return Attempt(folder, "resumed" if exists and number > 1 else "new", number, lock)


def check_same_run(
    folder: RunFolder, config: Config, *, resume: bool, check_longer: Callable[[], None]
) -> bool:
    """Check that a run folder may be continued with a configuration.

    Args:
        folder: A folder that holds a run.
        config: The configuration that is about to run in it.
        resume: Whether continuing is wanted at all.
        check_longer: Refuses a run that is made longer where it cannot be.

    Returns:
        Whether the configuration makes the run longer than it was.

    Raises:
        UserError: When the run has other settings (each is listed), or when it must not be resumed.
    """
    other = "choose another --output"
    recorded = folder.read_config()
    known = config.complete(recorded)
    changes = differences(known, json.loads(config.model_dump_json()))
    is_longer = _makes_longer(changes)
    if changes and not is_longer:
        shown = [f"  {key}: {old} -> {new}" for key, old, new in changes[:_MAX_DIFFERENCES_SHOWN]]
        if len(changes) > len(shown):
            shown.append(f"  and {len(changes) - len(shown)} more")
        raise UserError(
            "\n".join([f"{folder.path} holds another run; these settings differ:", *shown]),
            f"{other}, or use the run's own settings ({folder.command} has its command)",
        )
    if added := find_differences(flatten(recorded), flatten(known)):
        shown = [f"{key} {value}" for key, _, value in added[:_MAX_DIFFERENCES_SHOWN]]
        console.say(
            f"{folder.path} was started by an older alignctl; what that did not know is from now "
            f"on: {', '.join(shown)}"
        )
    if not resume:
        raise UserError(
            f"{folder.path} holds this run already, and --no-resume was given",
            f"{other}, or leave --no-resume out to continue it; nothing was changed",
        )
    if is_longer:
        check_longer()
        ((key, old, new),) = changes
        console.say(
            f"{folder.path} is made longer: {key} {old} -> {new}; from here on the learning rate "
            "takes the course of the longer run"
        )
    return is_longer


def _makes_longer(changes: list[tuple[str, str, str]]) -> bool:
    """Tell whether nothing differs but the length of the run, which grows."""
    if len(changes) != 1 or changes[0][0] not in MAY_GROW:
        return False
    _, *values = changes[0]
    old, new = map(json.loads, values)
    return old is not None and new is not None and new > old


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the settings that differ between two configurations although a resume must keep them.

    Args:
        old: The configuration of the run folder, as plain values.
        new: The configuration that is about to run.

    Returns:
        Dotted key, old value and new value as JSON, "absent" where one side lacks the key.
    """
    return [
        each for each in find_differences(flatten(old), flatten(new)) if not _may_change(each[0])
    ]


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def _refuse_foreign_folder(folder: RunFolder) -> None:
    path = folder.path
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path} is a file", "choose a folder that does not exist yet")
    # A model has a config.json too; but a launcher locks a folder before it writes one, and writes
    # the command line next.
    if not path.exists() or (
        folder.config.exists() and (any(path.glob(".launcher_*")) or folder.command.exists())
    ):
        return
    # A launcher that was killed before it wrote the configuration leaves only these.
    ours = (".launcher_", f".{folder.config.name}.")
    strangers = sorted(p.name for p in path.iterdir() if not p.name.startswith(ours))
    if strangers:
        raise UserError(
            f"--output {path} is not a run folder, and it is not empty: "
            f"it holds {', '.join(strangers[:3])}{' ...' if len(strangers) > 3 else ''}",
            "choose another --output; nothing was changed",
        )


def _wait_for_node_0(folder: RunFolder, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while not folder.config.exists():
        if time.monotonic() > deadline:
            raise RunError(
                f"node 0 has not created {folder.config} within {wait_seconds:.0f} seconds",
                "start node 0 too; --output must be a folder that all nodes share",
            )
        time.sleep(0.2)


@contextlib.contextmanager
def _lock(folder: RunFolder, node_rank: int) -> Iterator[int]:
    path = folder.path / f".launcher_{node_rank}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            raise _explain_in_use(folder, holder, _holders(path)) from None
        # Only for the message above. The kernel drops the lock when its last holder dies, so the
        # file may stay: removing it would let two launchers lock two files of one name.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _explain_in_use(folder: RunFolder, holder: str, processes: set[int]) -> UserError:
    """Explain what is wrong with a run folder whose lock is held.

    Args:
        folder: The run folder.
        holder: Who has written that he holds it: "process N on HOST".
        processes: Who holds it, of those of this machine that can be seen.
    """
    words = holder.split()
    is_here = len(words) == 4 and words[3] == socket.gethostname() and words[1].isdecimal()
    if not is_here or not processes or int(words[1]) in processes:
        return UserError(
            f"{folder.path} is in use by another launcher ({holder or 'just starting'})",
            "wait until it is done, stop it, or choose another --output",
        )
    numbers = " ".join(map(str, sorted(processes)))
    return UserError(
        f"{folder.path}: its launcher ({holder}) has died, and what it started (process {numbers}) "
        "has not ended yet",
        "its ranks finish the step, save and leave: start the same command again then, and it goes "
        f"on from there; kill -9 {numbers} ends them at once, and it goes on from the last "
        "checkpoint",
    )


def _holders(lock: Path) -> set[int]:
    """Find the processes of this machine that have a file open, as far as we may look into them."""
    found, name = set(), str(lock.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
            if str(link.readlink()) == name:
                found.add(int(link.parts[2]))
    return found - {os.getpid()}


def _attempts_so_far(folder: RunFolder) -> int:
    if not folder.environment.exists():
        return 0
    number = read_object(folder.environment).get("attempt")
    return number if isinstance(number, int) else 0


def _start_attempt(folder: RunFolder, config: Config, argv: Sequence[str], number: int) -> None:
    # A run that is made longer is no longer finished; with its old length it would be again.
    folder.result.unlink(missing_ok=True)
    # First: a folder that holds anything but no configuration is refused from then on.
    atomic.write_text(folder.config, config.model_dump_json(indent=2) + "\n")
    for stale in [folder.stop_file, *folder.logs.glob("ended_rank_*")]:
        stale.unlink(missing_ok=True)
    for stale in [*folder.logs.glob("error_rank_*.json"), *folder.logs.glob(".error_rank_*")]:
        stale.unlink(missing_ok=True)
    for stale in folder.logs.glob("torchrun_node_*.log"):
        stale.unlink(missing_ok=True)  # a node that is lost early would not replace its own
    folder.remove_unfinished()
    folder.logs.mkdir(exist_ok=True)
    earlier = folder.command.read_text(encoding="utf-8") if folder.command.exists() else ""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    atomic.write_text(folder.command, f"{earlier}# attempt {number}, {now}\n{shlex.join(argv)}\n")
    description = {"attempt": number, "started": now, **environment.describe()}
    atomic.write_text(folder.environment, json.dumps(description, indent=2) + "\n")


def _explain(folder: RunFolder, error: OSError) -> AlignctlError:
    what = f"cannot prepare the run folder {folder.path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(what, "free some space, or choose an --output on another disk")
    return UserError(what, "choose an --output that you may write to")
