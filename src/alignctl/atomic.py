"""Writes that are whole or absent: beside the target, synced, renamed.

A rename within one folder is atomic on POSIX file systems, but it may reach the disk before the
data does; so data is synced first, and the folder that holds the name is synced last.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from alignctl.errors import RunError, TakenError, UserError

OnWait = Callable[[str], None]
"""Told what is waited for, and when that is over."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's content, as UTF-8: see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader or a crash sees the old one or the new one.

    Args:
        path: The file; its folder must exist.
        content: The whole new content.

    Raises:
        OSError: When the disk is full or the folder is not writable; the old file is untouched.
    """
    # The process id keeps two writers of the same file from sharing one unfinished copy.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Sync the names in one folder to the disk: what was created, renamed or removed there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Sync every file and folder under a folder to the disk, the folder itself last."""
    for parent, _, names in os.walk(path, topdown=False):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(parent))


def commit_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its name, once everything in it is on the disk.

    Args:
        partial: The complete folder, beside the final one (a rename cannot cross file systems).
        final: The name it gets. An empty folder of that name is replaced; anything else is kept,
            since removing it first would leave a moment in which neither exists.

    Raises:
        FileExistsError: When `final` is a file or holds something.
    """
    fsync_tree(partial)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise FileExistsError(f"{final} exists already and is not empty")
    partial.rename(final)
    fsync_folder(final.parent)


@contextlib.contextmanager
def fill_folder(partial: Path, final: Path) -> Iterator[None]:
    """Make an empty folder for the block to fill; give it its name if the block has no error.

    Args:
        partial: The folder to fill, beside the final one. What a killed attempt left there goes;
            so does all of it after an error.
        final: The name it gets; see `commit_folder`.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield
        commit_folder(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_folder(final: Path, on_wait: OnWait | None = None) -> Iterator[Path]:
    """Make a folder to fill that gets its name only when the block ends without an error.

    Args:
        final: The name it gets; nothing, or an empty folder, may be there.
        on_wait: What `locked` is given.

    Yields:
        A hidden folder beside it, empty. What killed attempts have left there is removed.

    Raises:
        TakenError: The name is taken, perhaps by whom was waited for.
        UserError: Another process is writing it, or it cannot be made.
        RunError: The disk is full.
    """
    _refuse_taken(final)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final, on_wait):
            _refuse_taken(final)  # whoever had the lock before may have finished it
            scratch = re.compile(rf"\.{re.escape(final.name)}\.(\d+\.)?partial")
            for left in filter(lambda each: scratch.fullmatch(each.name), final.parent.iterdir()):
                shutil.rmtree(left, ignore_errors=True)
            with fill_folder(partial, final):
                yield partial
    except BaseException as error:
        if is_disk_full(error):
            raise RunError(
                f"no space left on device while writing {final}; what was written is removed, and "
                f"{free_space(final.parent)} now",
                "free some space and start again",
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"{final}: cannot be written: {error.strerror or error}") from error
        raise


def _refuse_taken(final: Path) -> None:
    if final.parent.exists() and not final.parent.is_dir():
        raise UserError(f"{final}: cannot be written: {os.strerror(errno.ENOTDIR)}")
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise TakenError(
            f"{final} exists already and is not empty", "give another name, or remove it first"
        )


@contextlib.contextmanager
def locked(path: Path, on_wait: OnWait | None = None) -> Iterator[None]:
    """Keep other processes from writing what is to get a name, until the block ends.

    The kernel drops the lock of a process that dies.

    Args:
        path: The name; its folder must exist.
        on_wait: Told that another process is writing it, and when it is done; None: do not wait.

    Raises:
        UserError: Another process is writing it, and nobody wants to wait.
    """
    file = path.with_name(f".{path.name}.lock")
    has_waited = False
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                _wait(path, descriptor, None if has_waited else on_wait, is_wanted=bool(on_wait))
            except BaseException:
                os.close(descriptor)
                raise
            has_waited = True
        if _is_still_at(file, descriptor):
            break
        os.close(descriptor)
    if has_waited and on_wait is not None:
        on_wait(f"{path}: the other command has ended")
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _wait(path: Path, descriptor: int, tell: OnWait | None, *, is_wanted: bool) -> None:
    """Take a lock when its holder has ended, or say who that is."""
    holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "just starting"
    said = f"{path} is being written by another command ({holder})"
    if not is_wanted:
        raise UserError(said, "wait until it is done (--wait), stop it, or give another name")
    if tell is not None:
        tell(f"{said}: waiting for it")
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still_at(file: Path, descriptor: int) -> bool:
    """Tell whether an open file still has its name: a lock's holder removes it in the end."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def free_space(path: Path) -> str:
    """Say how much of the disk that a path is on is free, for messages about a full one."""
    mount = path.resolve()
    while not mount.is_mount():
        mount = mount.parent
    usage = shutil.disk_usage(mount)
    return f"{usage.free:,} of {usage.total:,} bytes are free on the disk at {mount}"


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether a failure comes from a full disk, or a full quota.

    The whole chain of causes is searched: libraries wrap the system's error into their own, or fail
    over what they could not write.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
