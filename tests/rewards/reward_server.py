"""A reward on this machine: an HTTP server that scores, and misbehaves as it is told."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the server does with one request.

    Attributes:
        status: The HTTP status; None: the connection is dropped.
        body: What it sends; None: the scores.
        seconds: How long it thinks before.
        seconds_per_byte: How slowly the answer comes.
        is_cut: Whether the connection ends in the middle of the answer.
    """

    status: int | None = 200
    body: bytes | None = None
    seconds: float = 0.0
    seconds_per_byte: float = 0.0
    is_cut: bool = False


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

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                number = len(served.requests)
                served.requests.append(request)
            found = act(served, number)
            time.sleep(found.seconds)
            self.send(found, request)

        def send(self, act: Act, request: dict[str, Any]) -> None:
            self.close_connection = act.status is None or act.is_cut
            if act.status is None:
                return
            body = act.body
            if body is None:
                body = json.dumps({"scores": score(request)}).encode()
            self.send_response(act.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            body = body[: len(body) // 2] if act.is_cut else body
            if not act.seconds_per_byte:
                self.wfile.write(body)
                return
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                time.sleep(act.seconds_per_byte)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

        def handle(self) -> None:
            with served.lock:
                served.connections.append(self.connection)
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                return  # who asked has gone

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # of five, as is usual, the sixth connection waits for a second

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/score"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
