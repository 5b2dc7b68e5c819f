"""A judge that misbehaves: an OpenAI-compatible server on this machine, hostile as it is told."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tests/judge"
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 10


@dataclass(frozen=True)
class Act:
    """What the server does with one request.

    Attributes:
        status: The HTTP status; None: the connection is dropped.
        text: Words of the judge, sent as a chat completion.
        body: Sent as it is, in place of a completion.
        seconds: How long it thinks before.
        is_cut: Whether the connection ends in the middle of the answer.
        seconds_per_byte: How slowly the answer comes.
        headers: What else it sends.
    """

    status: int | None = 200
    text: str = "Good. Rating: [[5]]"
    body: bytes | None = None
    seconds: float = 0.0
    is_cut: bool = False
    seconds_per_byte: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Judge:
    """The server's side of the story.

    Attributes:
        url: Root of its API.
        attempts: Requests by prompt.
        answered: Completions sent whole, with status 200, by prompt.
        keys: Every Authorization header.
        most_at_once: Requests in work at the same time.
    """

    url: str
    act: Callable[[str, int], Act]
    models: Act
    attempts: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(
    act: Callable[[str, int], Act],
    models: Act = Act(body=json.dumps({"data": [{"id": MODEL}]}).encode()),  # noqa: B008
) -> Iterator[Judge]:
    """A judge for as long as the block lasts.

    Args:
        act: From the user's message and the number of the attempt, from 1, to what is done.
        models: What is done when the list of models is asked for.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            judge.keys.add(str(self.headers["Authorization"]))
            self.send(judge.models)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = request["messages"][-1]["content"]
            with judge.lock:
                judge.keys.add(str(self.headers["Authorization"]))
                judge.attempts[prompt] += 1
                number = judge.attempts[prompt]
                judge.at_once += 1
                judge.most_at_once = max(judge.most_at_once, judge.at_once)
            found = judge.act(prompt, number)
            time.sleep(found.seconds)
            with judge.lock:
                judge.at_once -= 1
                if found.status == 200 and found.body is None and not found.is_cut:
                    judge.answered[prompt] += 1
            self.send(found)

        def send(self, act: Act) -> None:
            self.close_connection = act.status is None or act.is_cut
            if act.status is None:
                return
            body = act.body if act.body is not None else completion(act.text)
            self.send_response(act.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in act.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if act.is_cut:
                body = body[: len(body) // 2]
            if not act.seconds_per_byte:
                self.wfile.write(body)
                return
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                time.sleep(act.seconds_per_byte)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that was killed has closed its connections; nobody needs to know."""

    server = Server(("127.0.0.1", 0), Handler)
    judge = Judge(f"http://127.0.0.1:{server.server_address[1]}/v1", act, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str) -> bytes:
    """A chat completion as servers send it."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({"object": "chat.completion", "choices": choices, "usage": usage}).encode()
