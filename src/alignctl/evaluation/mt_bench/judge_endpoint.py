"""Where a judge is, as a command line names it: address, name, parameters, and the key.

The key comes from the environment: what is on a command line is in every process list.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignctl.config.urls import find_url_problem
from alignctl.errors import UserError
from alignctl.evaluation.mt_bench.judge_prompts import Prompt
from alignctl.evaluation.mt_bench.replies import key

NO_KEY = "none"
"""What is sent to servers that want no key; the client insists on some."""

_DEFAULT_PARAMETERS = {"temperature": 0, "max_tokens": 2048}
"""FastChat's."""

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """Who judges, and how patient we are.

    Attributes:
        model: The judge's name at the server.
        url: Root of the API, such as http://localhost:8000/v1.
        key: The key; a text without meaning for servers that want none.
        key_variable: The environment variable that it comes from, for messages.
        parameters: What else is in a request, such as temperature and max_tokens.
        concurrency: Requests at a time.
        timeout_seconds: For one attempt, from the request to the last byte.
        num_attempts: For one request.
        first_wait_seconds: The longest wait after the first failure; it doubles every time. The
            true one is drawn evenly from zero to that, so that clients do not come back together.
    """

    model: str
    url: str
    key: str = field(repr=False)
    key_variable: str = "OPENAI_API_KEY"
    parameters: Mapping[str, object] = field(default_factory=dict)
    concurrency: int = 8
    timeout_seconds: float = 300.0
    num_attempts: int = 8
    first_wait_seconds: float = 1.0

    def name_of(self, prompt: Prompt) -> str:
        """Name the key under which a prompt's reply is cached.

        The server's address is no part of it: a judge may move from one port to another.
        """
        return key(self.model, prompt.messages, dict(self.parameters))


def endpoint(
    model: str,
    url: str,
    key_variable: str,
    parameters: Sequence[str],
    *,
    concurrency: int,
    timeout_seconds: float,
    num_attempts: int,
    needs_key: bool = True,
) -> Endpoint:
    """Make an endpoint from a command line, with its key from the environment.

    Args:
        model: The judge's name.
        url: Root of the API.
        key_variable: Where the key is.
        parameters: `NAME=VALUE`, values in JSON or plain text; null leaves a default out.
        concurrency: See `Endpoint`.
        timeout_seconds: See `Endpoint`.
        num_attempts: See `Endpoint`.
        needs_key: Whether OpenAI is really going to be asked.

    Raises:
        UserError: The URL or a parameter is none, or a key is needed and not there.
    """
    if problem := find_url_problem("--judge-url", url, may_ask=False):
        raise UserError(
            problem,
            "such as --judge-url http://localhost:8000/v1; a key belongs into the environment: "
            "--judge-key-variable NAME",
        )
    url = url.rstrip("/")
    return Endpoint(
        model,
        url,
        _key_from_environment(key_variable, needs_key and url == OPENAI_URL),
        key_variable,
        _parameters(parameters),
        concurrency,
        timeout_seconds,
        num_attempts,
    )


def _parameters(given: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = dict(_DEFAULT_PARAMETERS)
    for each in given:
        name, is_pair, text = each.partition("=")
        if not is_pair or not name:
            raise UserError(
                f"--judge-parameter {each}: not of the form NAME=VALUE", "such as max_tokens=4096"
            )
        if name in ("model", "messages", "stream", "n"):
            raise UserError(f"--judge-parameter {each}: {name} is not free to choose")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return {name: value for name, value in found.items() if value is not None}


def _key_from_environment(variable: str, is_needed: bool) -> str:
    """Read the key of an endpoint; a text without meaning when there is none and none is needed."""
    found = os.environ.get(variable, "").strip()
    if not found:
        if is_needed:
            raise UserError(
                f"the judge at {OPENAI_URL} wants a key, and the variable {variable} is not set",
                f"export {variable}=...; or name another server with --judge-url URL",
            )
        return NO_KEY
    if not found.isascii() or not found.isprintable() or " " in found:
        raise UserError(f"the variable {variable} holds characters that no key has")
    return found
