"""Running one node's part of a job: torchrun as a child, its progress shown, its end explained."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from types import FrameType

from alignctl import console
from alignctl.errors import RunError
from alignctl.launch.attempt import Attempt
from alignctl.launch.failure import diagnose
from alignctl.launch.job import Job
from alignctl.launch.peers import Peers
from alignctl.reporting.follow import Follower
from alignctl.reporting.progress.alive import alive
from alignctl.reporting.progress.run import Display
from alignctl.run_folder import RunFolder

_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_BETWEEN_PEERS = 1.0
_SECONDS_TO_FOLLOW = 5.0
"""How long this node's ranks have to notice by themselves that another node is gone."""


def run(job: Job, attempt: Attempt, display: Display, peers: Peers | None = None) -> None:
    """Start torchrun and stay until it ends; leave a finished run as it is.

    The first SIGINT or SIGTERM asks the ranks to save and leave, the second one kills them.
    The run's `result.json` tells whether it is complete or was stopped.

    Args:
        job: The job, as this node has to start it.
        attempt: The run folder, opened for this attempt.
        display: Where progress is shown; it is entered and left here.
        peers: The other nodes; None where there are none.

    Raises:
        UserError: When a rank found a mistake of the user.
        LostError: When a process or a node was lost.
        RunError: When the job failed for another reason, or was killed.
    """
    folder = attempt.folder
    if attempt.state == "finished":
        display.note(attempt.describe())
        return
    started = time.time()
    # Before the display's thread exists: Python code between fork and exec wants a single thread.
    process = _start(job, attempt)
    try:
        with display:
            display.note(attempt.describe())
            # Nodes often share an output, where every line would stand as often as there are nodes.
            follower = Follower(folder.metrics, since=started) if job.node_rank == 0 else None
            if follower is None:
                display.note("node 0 tells how far the run is")
            interrupts = _watch(process, job, folder, follower, display, peers)
            _conclude(job, folder, process.returncode, interrupts, display, peers)
    except OSError as error:
        if folder.config.exists():
            raise
        raise _explain_removal(folder) from error
    finally:
        if process.poll() is None:
            process.kill()  # its ranks are tied to it, see `worker`
            process.wait()


def _start(job: Job, attempt: Attempt) -> subprocess.Popen[bytes]:
    log = attempt.folder.torchrun_log(job.node_rank)
    with log.open("wb") as stream:
        return subprocess.Popen(
            job.command(),
            env={**os.environ, **dict(job.env)},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal must reach the launcher only: it stops the ranks in order.
            start_new_session=True,
            pass_fds=(attempt.lock,),
            preexec_fn=_die_with_launcher(),
        )


def _die_with_launcher() -> Callable[[], None]:
    """Return a hook that ties torchrun to this process: if it is killed, ranks save and leave."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    launcher = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)

    return tie


def _watch(
    process: subprocess.Popen[bytes],
    job: Job,
    folder: RunFolder,
    follower: Follower | None,
    display: Display,
    peers: Peers | None,
) -> list[int]:
    """Show progress and pass on interrupts until torchrun has ended; return the interrupts."""
    acted = 0
    watch = _Watch(peers, display)
    console.note_sign()
    with _interrupts() as received:
        while process.poll() is None:
            for row in follower.rows() if follower else ():
                display.show(row)
            if len(received) > acted:
                acted += 1
                if acted == 1:
                    folder.stop_file.touch()
                    display.note("stopping: finishing the step and saving; once more to kill")
                else:
                    process.kill()
            if watch.is_over():
                process.kill()
            if follower is not None:
                display.breathe()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        for row in follower.rows() if follower else ():
            display.show(row)
    if peers is not None and folder.path.is_dir():
        code = 0 if _has_ended_well(job, folder, process.returncode) else process.returncode
        peers.leave(code, is_cause=not watch.has_trouble and not received)
    return received


class _Watch:
    """Looks after the other nodes while this one's ranks are working."""

    def __init__(self, peers: Peers | None, display: Display) -> None:
        self._peers = peers
        self._display = display
        self._next_look = 0.0
        self._deadline: float | None = None

    @property
    def has_trouble(self) -> bool:
        return self._deadline is not None

    def is_over(self) -> bool:
        """Tell whether this node's ranks have to be ended because of another node."""
        now = time.monotonic()
        if self._peers is None or now < self._next_look:
            return False
        self._next_look = now + _SECONDS_BETWEEN_PEERS
        self._peers.beat()
        if self._deadline is None and (trouble := self._peers.trouble()):
            self._display.note(f"{trouble}: ending the processes of this node")
            self._deadline = now + _SECONDS_TO_FOLLOW
        return self._deadline is not None and now > self._deadline


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that they do not end this process."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(
    job: Job,
    folder: RunFolder,
    exit_code: int,
    interrupts: list[int],
    display: Display,
    peers: Peers | None,
) -> None:
    if not folder.config.exists():
        raise _explain_removal(folder)
    if _has_ended_well(job, folder, exit_code):
        # With several nodes the signal may have come to another one.
        is_stopped = interrupts or exit_code or folder.stop_file.exists()
        if is_stopped and folder.read_result() is None:
            saved = folder.latest_step()
            where = f"at step {saved}" if saved else "before anything was saved"
            display.note(f"stopped {where}; the same command goes on from there")
        if job.nnodes == 1:  # other nodes may not have seen it yet
            folder.stop_file.unlink(missing_ok=True)
        return
    if peers is not None:
        with alive("waiting for the other nodes"):
            peers.wait_for_others()
    if job.node_rank == 0:
        folder.remove_unfinished()  # it may be what fills the disk
    if len(interrupts) > 1:
        error = RunError(
            "killed before the ranks had saved",
            "the same command goes on from the last checkpoint",
        )
        error.exit_code = 128 + interrupts[-1]
        raise error
    cause = diagnose(folder, job, exit_code, peers)
    if peers is not None:
        peers.release_logs()
    raise cause


def _explain_removal(folder: RunFolder) -> RunError:
    return RunError(
        f"{folder.path} was removed, or moved elsewhere, while the run was going on: what ranks "
        "wrote into it since then is lost",
        "start the run again; a folder that was moved goes on with --output NEW_PLACE",
    )


def _has_ended_well(job: Job, folder: RunFolder, exit_code: int) -> bool:
    """Tell whether every rank of this node has left in good order.

    A scheduler may send torchrun a signal too; it then reports a failure though all ranks are done.
    """
    first = job.node_rank * job.nproc
    return exit_code == 0 or all(folder.rank_ended(first + n).exists() for n in range(job.nproc))
