"""A judge that misbehaves: an OpenAI-compatible server on this machine, hostile as it is told."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests import misbehaving_server

MODEL = "tests/judge"
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 10


@dataclass(frozen=True)
class Act(misbehaving_server.Act):
    """What the server does with one request.

    Attributes:
        text: Words of the judge, sent as a chat completion.
    """

    text: str = "Good. Rating: [[5]]"


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

    class Handler(misbehaving_server.Handler):
        def get(self) -> None:
            judge.keys.add(str(self.headers["Authorization"]))
            self.send(judge.models, b"")

        def post(self, request: Any) -> None:
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
            self.send(found, completion(found.text))

    judge = Judge("", act, models)
    with misbehaving_server.listening(Handler) as address:
        judge.url = f"{address}/v1"
        yield judge


def completion(text: str) -> bytes:
    """A chat completion as servers send it."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({"object": "chat.completion", "choices": choices, "usage": usage}).encode()
