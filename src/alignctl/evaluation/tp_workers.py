"""More ranks for a model that is too large for one device: vLLM, tensor-parallel, on this machine.

This process is rank 0, and the only one that knows what answers are for. The others, its workers,
run `tp_worker`: they start vLLM for the same checkpoint, are told the same requests, and so take
the same steps. They end when they are told to, or when this process is gone.
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
from alignctl.rollouts.samples import Request, Sampling

Asked = Sequence[tuple[Request, Sampling]]

_PROGRAM = "alignctl.evaluation.tp_worker"

_SECONDS_TO_END = 30.0
"""How long workers may take to leave."""

_SECONDS_TO_FAIL = 2.0
"""How long this process has to say itself what was wrong, when a worker has failed."""


@dataclass(frozen=True)
class Start:
    """What workers begin with: the arguments of `Generator`, and of `generation.start_rollout`."""

    load: Path
    model: Model | None
    settings: Generation
    longest: int


class Ranks:
    """This process and its workers, in one process group; a context manager."""

    def __init__(self, number: int) -> None:
        """Store the number of ranks; nothing is started.

        Args:
            number: Ranks, with this one.
        """
        self._number = number
        self._workers: list[subprocess.Popen[bytes]] = []
        self._are_dismissed = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the workers, and wait until they are there.

        Raises:
            UserError: There are not so many GPUs.
        """
        # Torch takes a second, which a wrong option is not to wait for.
        import torch

        from alignctl.engines.device import IS_GPU
        from alignctl.engines.torchrun import open_store
        from alignctl.rollouts import alone

        if IS_GPU and self._number > torch.cuda.device_count():
            raise UserError(f"tp {self._number}: there are {torch.cuda.device_count()} GPUs here")
        if self._number == 1:
            self._stack.enter_context(alone.process_group())
            return self
        store = open_store(LOOPBACK, 0, None)
        self._are_dismissed.clear()
        with ExitStack() as stack:
            stack.callback(self._end)
            self._workers = [self._start(rank, store.port) for rank in range(1, self._number)]
            if not IS_GPU:  # they share the cores
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
            stack.enter_context(alone.process_group(store, 0, self._number))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, told: Start | Asked) -> None:
        """Tell the workers what to do next; they do it when this process does."""
        if self._workers:
            broadcast(told)

    def dismiss(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End the workers, when a block ends; to be given to `ExitStack.push`."""
        self._are_dismissed.set()
        if not self._workers:
            return
        if error is None:
            broadcast(None)
        else:  # they may wait for a step that this process will not take any more
            self._kill()

    def _start(self, rank: int, port: int) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(port), str(rank), str(self._number)],
            env={**os.environ, **dict(worker_environment(self._number, os.environ))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )
        threading.Thread(target=self._watch, args=(rank, worker), daemon=True).start()
        return worker

    def _watch(self, rank: int, worker: subprocess.Popen[bytes]) -> None:
        """End this process when a worker has failed: it might wait for it for ever."""
        code = worker.wait()
        if not self._are_dismissed.wait(_SECONDS_TO_FAIL):
            console.say(f"error: rank {rank} of {self._number} ended with code {code}")
            os._exit(1)

    def _kill(self) -> None:
        self._are_dismissed.set()
        for worker in self._workers:
            worker.kill()

    def _end(self) -> None:
        self._are_dismissed.set()
        for worker in self._workers:
            try:
                worker.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._workers = []


def broadcast(told: object) -> Any:
    """Send every rank the value that rank 0 passes; return it."""
    import torch.distributed as dist

    from alignctl.engines.device import DEVICE

    box = [told]
    dist.broadcast_object_list(box, src=0, device=DEVICE)
    return box[0]
