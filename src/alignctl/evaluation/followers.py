"""More ranks for a model that is too large for one device: vLLM, tensor-parallel, on this machine.

This process is rank 0, and the only one that knows what answers are for. The others run this
module: they start vLLM for the same checkpoint, are told the same requests, and so take the same
steps. They end when they are told to, or when this process is gone.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from alignctl import console
from alignctl.config.generation import Generation
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.launch.job import worker_environment
from alignctl.launch.nodes import LOOPBACK
from alignctl.launch.worker import die_with_parent
from alignctl.rollouts import library
from alignctl.rollouts.samples import Request, Sampling

Asked = Sequence[tuple[Request, Sampling]]

_SECONDS_TO_END = 30.0
"""How long followers may take to leave."""

_SECONDS_TO_FAIL = 2.0
"""How long this process has to say itself what was wrong, when a follower has failed."""


@dataclass(frozen=True)
class Start:
    """What followers begin with: the arguments of `Generator`, and of `generation.started`."""

    load: Path
    model: Model | None
    settings: Generation
    longest: int


class Ranks:
    """This process and its followers, in one process group; a context manager."""

    def __init__(self, number: int) -> None:
        """Starts nothing.

        Args:
            number: Ranks, with this one.
        """
        self._number = number
        self._followers: list[subprocess.Popen[bytes]] = []
        self._are_dismissed = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Starts the followers, and waits until they are there.

        Raises:
            UserError: There are not so many GPUs.
        """
        import torch

        from alignctl.engines.device import IS_GPU
        from alignctl.engines.torchrun import listening_store
        from alignctl.rollouts import alone

        if IS_GPU and self._number > torch.cuda.device_count():
            raise UserError(f"tp {self._number}: there are {torch.cuda.device_count()} GPUs here")
        if self._number == 1:
            self._stack.enter_context(alone.process_group())
            return self
        store = listening_store(LOOPBACK, 0, None)
        self._are_dismissed.clear()
        with ExitStack() as stack:
            stack.callback(self._end)
            self._followers = [self._started(rank, store.port) for rank in range(1, self._number)]
            if not IS_GPU:  # they share the cores
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
            stack.enter_context(alone.process_group(store, 0, self._number))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, told: Start | Asked) -> None:
        """Tells the followers what to do next; they do it when this process does."""
        if self._followers:
            _broadcast(told)

    def dismiss(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Lets the followers go, when a block ends; to be given to `ExitStack.push`."""
        self._are_dismissed.set()
        if not self._followers:
            return
        if error is None:
            _broadcast(None)
        else:  # they may wait for a step that this process will not take any more
            self._kill()

    def _started(self, rank: int, port: int) -> subprocess.Popen[bytes]:
        follower = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port), str(rank), str(self._number)],
            env={**os.environ, **dict(worker_environment(self._number, os.environ))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )
        threading.Thread(target=self._watch, args=(rank, follower), daemon=True).start()
        return follower

    def _watch(self, rank: int, follower: subprocess.Popen[bytes]) -> None:
        """Ends this process when a follower has failed: it might wait for it for ever."""
        code = follower.wait()
        if not self._are_dismissed.wait(_SECONDS_TO_FAIL):
            console.say(f"error: rank {rank} of {self._number} ended with code {code}")
            os._exit(1)

    def _kill(self) -> None:
        self._are_dismissed.set()
        for follower in self._followers:
            follower.kill()

    def _end(self) -> None:
        self._are_dismissed.set()
        for follower in self._followers:
            try:
                follower.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait()
        self._followers = []


def _broadcast(told: object) -> Any:
    """What rank 0 says, on every rank."""
    import torch.distributed as dist

    from alignctl.engines.device import DEVICE

    box = [told]
    dist.broadcast_object_list(box, src=0, device=DEVICE)
    return box[0]


def follow(port: int, rank: int, number: int) -> None:
    """Does what rank 0 does, until it says that this is all."""
    die_with_parent()
    library.be_quiet()
    import torch.distributed as dist

    from alignctl.evaluation.generation import open_weights, started
    from alignctl.rollouts import alone

    store = dist.TCPStore(LOOPBACK, port, is_master=False)  # type: ignore[attr-defined]
    with alone.process_group(store, rank, number):
        start: Start = _broadcast(None)
        source = open_weights(start.load, start.model)
        with started(source, start.settings, start.longest) as rollout:
            while (requests := _broadcast(None)) is not None:
                for _ in rollout.stream(requests):
                    pass


if __name__ == "__main__":
    follow(*map(int, sys.argv[1:]))
