"""An HTTP server on this machine that misbehaves as it is told, for tests of who asks it."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the server does with one request.

    Attributes:
        status: The HTTP status; None: the connection is dropped.
        body: What it sends; None: what was asked for.
        seconds: How long it thinks before.
        seconds_per_byte: How slowly the answer comes.
        is_cut: Whether the connection ends in the middle of the answer.
        headers: What else it sends.
    """

    status: int | None = 200
    body: bytes | None = None
    seconds: float = 0.0
    seconds_per_byte: float = 0.0
    is_cut: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Reads requests and acts; what is asked for is a subclass's."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

    def get(self) -> None:
        """Answers a request without content; a server that has nothing to get refuses it."""
        self.send_error(501)

    def post(self, request: Any) -> None:
        """Answers a request of JSON; a server that takes nothing refuses it."""
        self.send_error(501)

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def send(self, act: Act, asked_for: bytes) -> None:
        """Answers as the act says."""
        self.close_connection = act.status is None or act.is_cut
        if act.status is None:
            return
        body = asked_for if act.body is None else act.body
        self.send_response(act.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in act.headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = body[: len(body) // 2] if act.is_cut else body
        if not act.seconds_per_byte:
            self.wfile.write(body)
            return
        for place in range(len(body)):
            self.wfile.write(body[place : place + 1])
            time.sleep(act.seconds_per_byte)

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            return  # who asked has gone

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """One thread for each connection."""

    daemon_threads = True
    request_queue_size = 128  # of five, as is usual, the sixth connection waits for a second


@contextmanager
def listening(handler: type[Handler]) -> Iterator[str]:
    """A server for as long as the block lasts: its address, such as http://127.0.0.1:1234."""
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
