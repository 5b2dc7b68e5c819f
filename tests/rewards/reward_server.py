"""A reward on this machine: an HTTP server that scores, and misbehaves as it is told."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests import misbehaving_server
from tests.misbehaving_server import Act


@dataclass
class Served:
    """The server's side of the story: its address, requests by their number, and connections."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_connections(self) -> int:
        """Connections that were opened."""
        return len(self.connections)

    def hang_up(self) -> None:
        """Closes all connections."""
        for connection in self.connections:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)


def fail_every_tenth(served: "Served", number: int) -> Act:
    """Every tenth request fails, unless it is one that has just failed: so no answer has no score.

    Args:
        served: The server's side of the story.
        number: Of the request.
    """
    request = served.requests[number]
    with served.lock:
        is_again = request in served.failed
        if is_again:
            served.failed.remove(request)
        elif number % 10 == 9:
            served.failed.append(request)
            return Act(status=503)
    return Act()


def score_length(request: dict[str, Any]) -> list[float]:
    """Characters of each answer, divided by a hundred."""
    return [len(completion) / 100 for completion in request["completions"]]


@contextmanager
def serving(
    act: Callable[["Served", int], Act] = lambda *_: Act(),
    score: Callable[[dict[str, Any]], list[Any]] = score_length,
) -> Iterator[Served]:
    """A reward for as long as the block lasts.

    Args:
        act: From this side of the story and the number of a request, from 0, to what is done.
        score: From a request to its scores.
    """
    served = Served()

    class Handler(misbehaving_server.Handler):
        def post(self, request: dict[str, Any]) -> None:
            with served.lock:
                number = len(served.requests)
                served.requests.append(request)
            found = act(served, number)
            time.sleep(found.seconds)
            self.send(found, json.dumps({"scores": score(request)}).encode())

        def handle(self) -> None:
            with served.lock:
                served.connections.append(self.connection)
            super().handle()

    with misbehaving_server.listening(Handler) as address:
        served.url = f"{address}/score"
        yield served
