"""A reward behind a URL: JSON in, JSON out, asked again where it fails.

    POST {"prompts": [...], "completions": [...], "rows": [{...}, ...]}
    200  {"scores": [0.5, {"score": 1.0, "length": 12}, ...]}

The lists have one entry, or with `batched` many. What a repetition may mend is repeated: a
connection that fails or ends early, a time-out, the statuses 408, 425, 429 and 500 or more, and an
answer that is not of that form. Redirects are not followed, and no proxy is asked.
"""

import http.client
import json
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self
from urllib.parse import urlsplit

from alignctl.rewards.results import Result, fail, read_results

NUM_ATTEMPTS = 3
CONCURRENCY = 8
"""Requests of a rank at a time."""

_FIRST_WAIT_SECONDS = 0.1
_MAY_PASS = (408, 425, 429)
_MOST_BYTES = 1 << 24
_CHUNK = 1 << 16


class _AttemptError(Exception):
    """An attempt that failed; `may_pass` says whether another one may not."""

    def __init__(self, why: str, *, may_pass: bool = True) -> None:
        super().__init__(why)
        self.may_pass = may_pass


class Remote:
    """A server that scores answers; a context manager, which ends its threads."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        """Ask nothing yet.

        Args:
            url: Where requests go.
            timeout_seconds: For one attempt, from the request to the last byte.
        """
        self._url, self._timeout_seconds = url, timeout_seconds
        self._threads = ThreadPoolExecutor(CONCURRENCY, "reward")

        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def results(self, tasks: Sequence[Mapping[str, list[Any]]]) -> list[list[Result]]:
        """Score the answers of tasks, several tasks at a time; a list for each, in their order."""
        return list(self._threads.map(self._persist, tasks))

    def _persist(self, task: Mapping[str, list[Any]]) -> list[Result]:
        """Ask until there is an answer, or it is enough."""
        count, wait = len(task["prompts"]), _FIRST_WAIT_SECONDS
        for attempt in range(NUM_ATTEMPTS):
            try:
                scores = self._ask(json.dumps(task).encode())
                return _with_retries(read_results(scores, count), attempt)
            except _AttemptError as error:
                why = str(error)
                if not error.may_pass or attempt + 1 == NUM_ATTEMPTS:
                    break
            time.sleep(wait)
            wait *= 2
        return _with_retries([fail(f"{why} (asked {attempt + 1} times)")] * count, attempt)

    def _ask(self, body: bytes) -> object:
        """Send one request, once, and return its `scores`."""
        try:
            status, content = self._send(body)
        except TimeoutError as error:
            raise _AttemptError(f"no answer in {self._timeout_seconds:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _AttemptError(f"{type(error).__name__}: {error}") from error
        if status != 200:
            said = content[:80].decode("utf-8", "replace")
            may_pass = status in _MAY_PASS or status >= 500
            raise _AttemptError(f"HTTP {status}: {said}", may_pass=may_pass)
        return _scores(content)

    def _send(self, body: bytes) -> tuple[int, bytes]:
        """Send a request on a connection that is open already, or else on a new one.

        The server may have closed an idle one meanwhile, which is no failure of the request.
        """
        deadline = time.monotonic() + self._timeout_seconds
        if not self._idle.empty():
            with suppress(queue.Empty, ConnectionError):  # RemoteDisconnected is one too
                return self._exchange(self._idle.get_nowait(), body, deadline)
        parts = urlsplit(self._url)
        secure = parts.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = make(str(parts.hostname), parts.port, timeout=self._timeout_seconds)
        return self._exchange(connection, body, deadline)

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, deadline: float
    ) -> tuple[int, bytes]:
        """Send a request and read its answer; keep the connection if the server does."""
        parts = urlsplit(self._url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            if connection.sock is not None:
                connection.sock.settimeout(self._timeout_seconds)
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = _read(connection, response, deadline)
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.put(connection)
        return response.status, content


def _read(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float
) -> bytes:
    """Read an answer to its end: the socket's own limit is for each read, so drips never reach it.

    Raises:
        TimeoutError: The deadline has passed.
    """
    content = b""
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > _MOST_BYTES:
            raise _AttemptError(f"an answer of more than {_MOST_BYTES:,} bytes", may_pass=False)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:
            connection.sock.settimeout(left)
    if response.length:
        raise http.client.IncompleteRead(content)
    response.close()  # read1 leaves it open at its end, and the connection waits for that
    return content


def _with_retries(results: Sequence[Result], retries: int) -> list[Result]:
    """Say with the first result of a request how often that was repeated."""
    return [replace(results[0], retries=retries), *results[1:]]


def _scores(content: bytes) -> object:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _AttemptError(f"its answer is not JSON: {error}") from error
    if not isinstance(said, dict) or "scores" not in said:
        raise _AttemptError('its answer is not of the form {"scores": [...]}')
    return said["scores"]
