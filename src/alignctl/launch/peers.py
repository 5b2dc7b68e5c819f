"""The launchers of a job's nodes, as they see each other through the run folder they share.

Each node writes one file, `nodes/node_N.json`, and reads those of the others. Before the start node
0 opens a session and waits until every node has joined it with the same job; while the job runs,
each node counts up a number in its file, and notices when another one stops counting or fails. So a
node that is missing, differs or dies is named, and ends the job everywhere within a bounded time.
"""

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignctl import atomic
from alignctl.errors import AlignctlError, LostError, RunError, UserError
from alignctl.launch.fingerprint import find_differences
from alignctl.launch.nodes import Nodes
from alignctl.run_folder import RunFolder

_SECONDS_BETWEEN_BEATS = 2.0
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_TELL = 15.0
_MAX_DIFFERENCES_SHOWN = 8

State = Literal["gathering", "joined", "preparing", "running", "failed", "released", "ended"]
_FAILED = ("failed", "released")
_OVER = (*_FAILED, "ended")


@dataclass(frozen=True)
class Heartbeat:
    """What one node's file says.

    Attributes:
        session: Of node 0's latest gathering; a file of another session is an old one.
        state: What the node is doing.
        beat: Counted up while the node is there.
        host: Its name.
        fingerprint: What has to be the same on all nodes, by name.
        code: Of a node that failed: torchrun's exit code, or that of the error; else None.
        message: Of a node that could not start: why.
        hint: What to do about it.
    """

    session: str
    state: State
    beat: int = 0
    host: str = field(default_factory=socket.gethostname)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    code: int | None = None
    message: str | None = None
    hint: str | None = None


class Peers:
    """The other nodes of a job on several nodes, for the launcher of one of them."""

    def __init__(
        self,
        folder: RunFolder,
        nodes: Nodes,
        nproc: int,
        *,
        start_seconds: float,
        silence_seconds: float,
    ) -> None:
        """Remember the settings; no file is read or written yet.

        Args:
            folder: The run folder; it may not exist yet.
            nodes: This node's place.
            nproc: Ranks on each node.
            start_seconds: How long nodes wait for each other before the start.
            silence_seconds: After how long without a heartbeat a node is taken for lost.
        """
        self.folder = folder
        self.nodes = nodes
        self.nproc = nproc
        self._start_seconds = start_seconds
        self._silence_seconds = silence_seconds
        self._heartbeat = Heartbeat(session="", state="ended")
        self._written = 0.0
        self._has_come = nodes.node_rank == 0
        # Clocks of nodes differ, so what counts is when a change was seen here.
        self._seen: dict[int, tuple[tuple[str, int], float]] = {}

    # ---- before the start ----

    def gather(self, fingerprint: Mapping[str, str]) -> None:
        """Wait, as node 0, until all nodes have joined, each with the same fingerprint.

        Raises:
            UserError: A node is about to run another job, or found a mistake of the user.
            RunError: A node did not come in time; each missing one is named, with its ranks.
        """
        self._path(0).parent.mkdir(exist_ok=True)
        session = secrets.token_hex(8)
        self._write(Heartbeat(session=session, state="gathering", fingerprint=dict(fingerprint)))
        deadline = time.monotonic() + self._start_seconds
        self._seen.clear()
        while missing := [n for n in self._others() if self._read_heartbeat(n) is None]:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self._name_nodes(missing)} did not join within "
                    f"{self._start_seconds:.0f} seconds",
                    "start the same command there, with its own --node-rank; --output must be a "
                    "folder that all nodes share",
                )
            self.beat()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        for number, heartbeat in self._heartbeats().items():
            _refuse_failed(self.name(number), heartbeat)
            _compare(self.name(number), fingerprint, heartbeat.fingerprint)
        self._write(replace(self._heartbeat, state="preparing"))

    def start(self) -> None:
        """Let the others start, as node 0.

        Raises:
            AlignctlError: A node has left since it joined.
        """
        for number, heartbeat in self._heartbeats().items():
            _refuse_failed(self.name(number), heartbeat)
        self._write(replace(self._heartbeat, state="running"))

    def enter(self, fingerprint: Mapping[str, str]) -> None:
        """Join, as another node than 0, and wait until node 0 says that the job starts.

        It may wait for longer than `start_seconds`, as long as node 0 shows that it is there.

        Raises:
            AlignctlError: What keeps node 0, or any node, from starting.
            LostError: Node 0 did not come in time, or has gone.
        """
        self._heartbeat, self._seen, self._has_come = Heartbeat(session="", state="ended"), {}, True
        deadline = time.monotonic() + self._start_seconds
        while not self.folder.result.exists():
            master = self._read(0)
            if master is not None and self._is_fresh(0, master):
                if master.state == "gathering" and master.session != self._heartbeat.session:
                    self._write(
                        Heartbeat(
                            session=master.session, state="joined", fingerprint=dict(fingerprint)
                        )
                    )
                if master.session == self._heartbeat.session:
                    if master.state == "running":
                        self._write(replace(self._heartbeat, state="running"))
                        return
                    _refuse_failed(self.name(0), master)
                    deadline = time.monotonic() + self._silence_seconds
            if time.monotonic() > deadline:
                raise self._node_0_is_missing()
            self.beat()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _node_0_is_missing(self) -> LostError:
        if self._heartbeat.session:
            return LostError(
                f"{self.name(0)} has not been heard of for {self._silence_seconds:.0f} seconds",
                "see what became of it; the same command on all nodes starts again",
            )
        return LostError(
            f"node 0 has not opened {self.folder.path} within {self._start_seconds:.0f} seconds",
            "start node 0 too; --output must be a folder that all nodes share",
        )

    def cannot_start(self, error: AlignctlError) -> None:
        """Tell the other nodes why this one will not run, if they are there to be told.

        If node 0 is not there yet, this waits for it a little.
        """
        if self._heartbeat.session and self._heartbeat.state in _OVER:
            return  # it had started, and has told what became of it
        session = self._heartbeat.session if self._has_come else self._open_session()
        if session:
            failed = Heartbeat(session=session, state="failed", code=error.exit_code)
            self._write(replace(failed, message=error.message, hint=error.hint))

    def _open_session(self) -> str:
        """Wait a little for the session that node 0 has open; empty when there is none."""
        deadline = time.monotonic() + min(_SECONDS_TO_TELL, self._start_seconds)
        while time.monotonic() < deadline:
            master = self._read(0)
            if master and master.state == "gathering" and self._is_fresh(0, master):
                return master.session
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return ""

    # ---- while the job runs ----

    def beat(self) -> None:
        """Show the others that this node is there, if it is time to."""
        if self._heartbeat.session and time.monotonic() - self._written > _SECONDS_BETWEEN_BEATS:
            self._write(replace(self._heartbeat, beat=self._heartbeat.beat + 1))

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Keep calling `beat` from a thread, while this thread is busy in the block."""
        done = threading.Event()

        def go_on() -> None:
            while not done.wait(_SECONDS_BETWEEN_BEATS / 2):
                self.beat()

        thread = threading.Thread(target=go_on, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def trouble(self) -> str | None:
        """Say why the job cannot go on, as far as other nodes are concerned; None when it can."""
        for number in self._others():
            heartbeat = self._read_heartbeat(number)
            if heartbeat is not None and heartbeat.state in _FAILED:
                return f"{self.name(number)} failed"
            if (heartbeat is None or heartbeat.state != "ended") and self.is_lost(number):
                return self.lost_message(number)
        return None

    def leave(self, code: int, *, is_cause: bool) -> None:
        """Tell the others that this node's processes have ended.

        Args:
            code: torchrun's exit code.
            is_cause: False where they were ended because of another node.
        """
        state: State = "failed" if code else "ended"
        self._write(replace(self._heartbeat, state=state, code=code if is_cause else None))

    def wait_for_others(self) -> None:
        """Wait until every other node has ended, failed or is lost: then the logs are complete."""
        while any(not self._is_over(number) for number in self._others()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def release_logs(self) -> None:
        """Show that this node has found the cause of a failure and needs the logs no longer."""
        self._write(replace(self._heartbeat, state="released"))

    def wait_for_release(self) -> None:
        """Wait until no other node needs the logs of the attempt that failed."""
        while any(self._needs_logs(number) for number in self._others()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _needs_logs(self, number: int) -> bool:
        heartbeat = self._read_heartbeat(number)
        return heartbeat is not None and heartbeat.state == "failed" and not self.is_lost(number)

    def _is_over(self, number: int) -> bool:
        heartbeat = self._read_heartbeat(number)
        # One that has no part in the session never joined, and is not waited for.
        return heartbeat is None or heartbeat.state in _OVER or self.is_lost(number)

    # ---- what became of the others ----

    def lost(self) -> list[int]:
        """List the nodes that went silent."""
        return [
            n
            for n, heartbeat in self._heartbeats().items()
            if heartbeat.state not in _OVER and self.is_lost(n)
        ]

    def refusal(self) -> AlignctlError | None:
        """Return the reason why a node could not start its processes, as an error of this one."""
        for number, heartbeat in self._heartbeats().items():
            if heartbeat.state in _FAILED and heartbeat.message is not None:
                return _explain_refusal(self.name(number), heartbeat)
        return None

    def list_killed(self) -> dict[int, int]:
        """List by node the signal that ended its torchrun, unless another node was the cause."""
        everyone = {**self._heartbeats(), self.nodes.node_rank: self._heartbeat}
        codes = {number: heartbeat.code for number, heartbeat in everyone.items()}
        return {number: -code for number, code in codes.items() if code is not None and code < 0}

    def is_lost(self, number: int) -> bool:
        """Tell whether a node has not been heard of for too long."""
        heartbeat = self._read_heartbeat(number)
        mark = ("", 0) if heartbeat is None else (heartbeat.session, heartbeat.beat)
        now = time.monotonic()
        before = self._seen.get(number)
        if before is None or before[0] != mark:
            self._seen[number] = (mark, now)
            return False
        return now - before[1] > self._silence_seconds

    def lost_message(self, number: int) -> str:
        """Say that a node is lost."""
        silence = f"has not been heard of for {self._silence_seconds:.0f} seconds"
        return f"{self.name(number)} {silence}"

    def name_of_rank(self, rank: int) -> str:
        """Name a rank together with its node."""
        return f"rank {rank} ({self._place(rank // self.nproc)})"

    # ---- files ----

    def _others(self) -> list[int]:
        return [n for n in range(self.nodes.nnodes) if n != self.nodes.node_rank]

    def _path(self, number: int) -> Path:
        return self.folder.node_file(number)

    def _write(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._written = time.monotonic()
        atomic.write_text(self._path(self.nodes.node_rank), json.dumps(asdict(heartbeat)) + "\n")

    def _read(self, number: int) -> Heartbeat | None:
        try:
            content: dict[str, Any] = json.loads(self._path(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Heartbeat(**content)

    def _read_heartbeat(self, number: int) -> Heartbeat | None:
        heartbeat = self._read(number)
        return (
            heartbeat
            if heartbeat is not None and heartbeat.session == self._heartbeat.session
            else None
        )

    def _heartbeats(self) -> dict[int, Heartbeat]:
        """Read what the other nodes of this session say."""
        return {n: heartbeat for n in self._others() if (heartbeat := self._read_heartbeat(n))}

    def _is_fresh(self, number: int, heartbeat: Heartbeat) -> bool:
        """Tell whether a launcher is writing a file now, or an earlier one has left it."""
        mark = (heartbeat.session, heartbeat.beat)
        if heartbeat.session == self._heartbeat.session:
            return not self.is_lost(number)
        before = self._seen.setdefault(number, (mark, time.monotonic()))
        return before[0] != mark

    def _place(self, number: int) -> str:
        heartbeat = (
            self._heartbeat if number == self.nodes.node_rank else self._read_heartbeat(number)
        )
        return f"node {number}" if heartbeat is None else f"node {number}, {heartbeat.host}"

    def name(self, number: int) -> str:
        """Name a node, with its host once that is known."""
        heartbeat = self._read_heartbeat(number)
        return f"node {number}" if heartbeat is None else f"node {number} ({heartbeat.host})"

    def _name_nodes(self, numbers: list[int]) -> str:
        first = [number * self.nproc for number in numbers]
        names = [
            f"node {number} (ranks {rank} to {rank + self.nproc - 1})"
            if self.nproc > 1
            else f"node {number} (rank {rank})"
            for number, rank in zip(numbers, first, strict=True)
        ]
        return f"{', '.join(names)} of {self.nodes.nnodes} nodes"


def _refuse_failed(name: str, heartbeat: Heartbeat) -> None:
    if heartbeat.state in _FAILED:
        raise _explain_refusal(name, heartbeat)


def _explain_refusal(name: str, heartbeat: Heartbeat) -> AlignctlError:
    """Make an error of this node out of the reason why another node could not start."""
    kind = UserError if heartbeat.code == UserError.exit_code else RunError
    return kind(f"{name}: {heartbeat.message or 'its processes have ended'}", heartbeat.hint)


def _compare(name: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Refuse a node that is about to run something else than node 0."""
    found = find_differences(ours, theirs)
    if not found:
        return
    shown = [
        f"  {key}: {here} on node 0, {there} there"
        for key, here, there in found[:_MAX_DIFFERENCES_SHOWN]
    ]
    if len(found) > len(shown):
        shown.append(f"  and {len(found) - len(shown)} more")
    raise UserError(
        "\n".join([f"{name} is not about to run the same job as node 0:", *shown]),
        "give all nodes the same command, code and files; nothing was started",
    )
