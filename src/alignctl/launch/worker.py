"""What every rank does around its work: own log, orderly stop, an error the launcher can read.

A stage module ends with

    if __name__ == "__main__":
        worker.run(main, sys.argv[1])

Only the standard library is imported here, so that the log is in place before anything heavy.
"""

import ctypes
import faulthandler
import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from alignctl import atomic
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.run_folder import RunFolder

_PR_SET_PDEATHSIG = 1
_RESERVED_BYTES = 16384
_stop = threading.Event()


def run(main: Callable[[RunFolder], None], run_folder: str) -> NoReturn:
    """Run a stage's work as one rank of a torchrun job, and end the process.

    The rank's output goes to `logs/rank_N.log`. SIGTERM asks for an orderly stop, see
    `stop_requested`. A failure becomes `logs/error_rank_N.json`: its `kind` is `user` or `run` for
    the two errors of `alignctl.errors`, `internal` for all others, with the traceback in the log.

    Args:
        main: The work; it returns when the run is complete, or saved after a stop was requested.
        run_folder: Path of the run folder, the one argument of every stage module.
    """
    folder = RunFolder(Path(run_folder))
    if not folder.config.exists():  # the command of a dry run, before there is anything to run
        sys.exit(f"{folder.path} is no run folder: alignctl STAGE --output makes it")
    rank = int(os.environ.get("RANK", "0"))
    die_with_parent()
    folder.logs.mkdir(parents=True, exist_ok=True)
    _redirect_output(folder.rank_log(rank))
    _reserve_space(folder.rank_reserve(rank))
    faulthandler.enable()  # a crash in C++ code leaves a Python traceback in the log
    _watch_for_sigterm(folder)
    try:
        main(folder)
        folder.rank_ended(rank).touch()
        folder.rank_reserve(rank).unlink()
    except BaseException as error:
        leave_failed(folder, error)
    sys.exit(0)


def stop_requested(folder: RunFolder) -> bool:
    """Tell whether this rank was asked to save and leave, by SIGTERM or by the `stop` file.

    Ranks may see it at different moments: agree on one rank's answer before acting on it.
    """
    return _stop.is_set() or folder.stop_file.exists()


def die_with_parent() -> None:
    """Tie this process to the one that started it: if that is killed, nobody else would end it."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _redirect_output(log: Path) -> None:
    """Point descriptors 1 and 2 at the log, so that C++ libraries write there too."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    os.write(1, f"=== {stamp} process {os.getpid()}: {' '.join(sys.argv)}\n".encode())


def _reserve_space(reserve: Path) -> int:
    """Take the disk space that an error message will need, while there is some.

    Returns:
        The descriptor that holds the file's lock: a reserve that is there but not locked belongs
        to a rank that was killed.
    """
    descriptor = os.open(reserve, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, b" " * _RESERVED_BYTES)
    os.fsync(descriptor)
    return descriptor


def _watch_for_sigterm(folder: RunFolder) -> None:
    """Notice SIGTERM at once, even while the main thread waits inside a collective.

    Python runs signal handlers between two bytecodes of the main thread, which may never come
    when another rank is gone. The byte that the interpreter writes to a wake-up descriptor does
    arrive; a thread waits for it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Without any Python handler the default action, instant death, would stay in place.
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())

    def watch() -> None:
        while received := os.read(reader, 1):
            if received[0] != signal.SIGTERM:
                continue
            _stop.set()
            if _has_another_rank_failed(folder):
                # torchrun ends the job for this reason. What is under way cannot be completed
                # without that rank, so waiting for it would only delay the message.
                os.write(2, b"another rank failed: leaving\n")
                os._exit(1)

    threading.Thread(target=watch, name="sigterm", daemon=True).start()


def _has_another_rank_failed(folder: RunFolder) -> bool:
    if any(folder.logs.glob("error_rank_*.json")):
        return True
    return any(_is_abandoned(reserve) for reserve in folder.logs.glob(".error_rank_*.reserve"))


def _is_abandoned(reserve: Path) -> bool:
    try:
        descriptor = os.open(reserve, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # its rank has left in good order since the folder was listed
    try:
        # Not exclusive: several ranks look at the same time.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    # Whoever leaves in good order removes the file first and unlocks it by ending.
    return reserve.exists()


def leave_failed(folder: RunFolder, error: BaseException) -> NoReturn:
    """Report an error and end the process, from any thread, without clean-up that could hang.

    Process groups are torn down by talking to the other ranks, which no longer answer.
    """
    rank = int(os.environ.get("RANK", "0"))
    explained = explain(error, folder)
    if explained is None:
        kind, message, hint, code = "internal", f"{type(error).__name__}: {error}", None, 1
    else:
        kind = "user" if isinstance(explained, UserError) else "run"
        message, hint, code = explained.message, explained.hint, explained.exit_code
    report = {"time": time.time(), "rank": rank, "kind": kind, "message": message, "hint": hint}
    _write_report(folder, rank, report)
    try:
        if kind == "user":
            sys.stderr.write(f"error: {message}\n")
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # On a full disk the log cannot be written either; the report above is what matters.
        os._exit(code)


def explain(error: BaseException, folder: RunFolder) -> AlignctlError | None:
    """Explain a failure to the user; return None for a defect, which needs its traceback.

    Args:
        error: What the stage raised.
        folder: The run folder; the disk it is on is named when it is full.
    """
    if isinstance(error, AlignctlError):
        return error
    if atomic.is_disk_full(error):
        name = getattr(error, "filename", None) or folder.path
        saved = folder.latest_checkpoint()
        whole = f"{saved} is whole" if saved else "no checkpoint was complete yet"
        where = "it goes on from there" if saved else "it starts anew"
        return RunError(
            f"no space left on device while writing {name}: {atomic.free_space(folder.path)}; "
            f"{whole}",
            f"free some space and start the same command again: {where}",
        )
    return None


def _write_report(folder: RunFolder, rank: int, report: dict[str, object]) -> None:
    text = json.dumps(report)
    if len(text) > _RESERVED_BYTES:
        # A character takes up to twelve bytes in ASCII JSON.
        kept = {key: f"{str(report[key])[:500]} ..." for key in ("message", "hint") if report[key]}
        text = json.dumps({**report, **kept})
    reserve = folder.rank_reserve(rank)
    # Written over the blanks in place: they are valid JSON white space, and no block is needed.
    with reserve.open("r+b") as stream:
        stream.write(text.encode("ascii"))
    reserve.replace(folder.rank_error(rank))
