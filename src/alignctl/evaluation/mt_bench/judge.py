"""A judge behind an OpenAI-compatible endpoint: many requests at a time, each until it succeeds.

The key and the prompts go to the server and nowhere else: they are kept out of messages, and the
client's own log, which would show requests with `OPENAI_LOG=debug`, is held at warnings.

openai and tenacity are an extra, and take a second: they are imported where a judge is asked.
"""

import asyncio
import difflib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.evaluation.mt_bench.judge_endpoint import NO_KEY, Endpoint
from alignctl.evaluation.mt_bench.judge_prompts import Prompt
from alignctl.evaluation.mt_bench.replies import Reply, ReplyCache

if TYPE_CHECKING:
    import openai

MAX_FAILURES_IN_A_ROW = 8
"""So many requests without an answer, and none with one between them, end the judging."""

_LONGEST_WAIT_SECONDS = 60.0
_SHOWN_CHARACTERS = 300
_OUT_OF_QUOTA = "insufficient_quota"


@dataclass(frozen=True)
class Answers:
    """What came of a list of prompts.

    Attributes:
        replies: By the prompts' names; those that were known before, too.
        refused: Names of the prompts that the server will never take, with what it said.
        failed: Names of those that got no answer in all attempts, with what was last in the way.
        num_asked: Replies that are new.
    """

    replies: Mapping[str, Reply]
    refused: Mapping[str, str]
    failed: Mapping[str, str]
    num_asked: int


def ask_all(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    cache: ReplyCache,
    on_reply: Callable[[Reply], None],
) -> Answers:
    """Get a reply to every prompt: from the cache, else from the judge, once for equal prompts.

    A reply is in the cache before `on_reply` hears of it. When this raises, or the process is
    killed, only what was on its way is lost.

    Raises:
        UserError: The server knows neither the key nor the model.
        RunError: The account is empty, the disk is full, or the server has stopped answering.
    """
    wanted = {endpoint.name_of(prompt): prompt for prompt in prompts}
    unknown = {name: prompt for name, prompt in wanted.items() if cache.get(name) is None}
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    if unknown:
        asyncio.run(_Judging(endpoint, cache, on_reply, refused, failed).run(unknown))
    known = {name: reply for name in wanted if (reply := cache.get(name)) is not None}
    return Answers(known, refused, failed, sum(name in known for name in unknown))


def look(endpoint: Endpoint) -> str | None:
    """Ask the server for its models, which costs nothing, before anything long begins.

    Returns:
        A remark when it lists models and the judge's is not among them.

    Raises:
        UserError: Nobody is there, or the key is not accepted.
    """
    return asyncio.run(_look(endpoint))


class _RefusedError(Exception):
    """The server will not take this prompt, however often it is asked."""


class _TransientError(Exception):
    """What may be over when the request is repeated."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(None, ge=0)
    completion_tokens: int | None = Field(None, ge=0)


class _Completion(BaseModel):
    """The part of a chat completion that is used. The client itself checks no types."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    """The list of a server's models."""

    data: list[_Model]


class _Judging:
    """Workers that take prompts from one list, until it is empty or there is no use in going on."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: ReplyCache,
        on_reply: Callable[[Reply], None],
        refused: dict[str, str],
        failed: dict[str, str],
    ) -> None:
        self._endpoint = endpoint
        self._cache = cache
        self._on_reply = on_reply
        self._refused = refused
        self._failed = failed
        self._failures_in_a_row = 0
        self._stop: AlignctlError | None = None
        self._has_stopped = asyncio.Event()

    async def run(self, prompts: Mapping[str, Prompt]) -> None:
        waiting = iter(prompts.items())
        async with _client(self._endpoint) as client:

            async def work() -> None:
                for name, prompt in waiting:
                    await self._settle(client, name, prompt)
                    if self._stop is not None:
                        return

            # The others end by themselves: what they wait for may be paid already.
            await asyncio.gather(*(work() for _ in range(self._endpoint.concurrency)))
        if self._stop is not None:
            raise self._stop

    async def _settle(self, client: "openai.AsyncOpenAI", name: str, prompt: Prompt) -> None:
        """Ask until there is a reply, and keep it, or note why there is none."""
        try:
            reply = await self._persist(client, prompt)
            self._cache.add(name, reply)
        except AlignctlError as error:
            self._end(error)
        except _RefusedError as error:
            self._refused[name] = str(error)
            self._count_failure(str(error))
        except _TransientError as error:
            self._failed[name] = str(error)
            self._count_failure(str(error))
        else:
            self._failures_in_a_row = 0
            self._on_reply(reply)

    async def _persist(self, client: "openai.AsyncOpenAI", prompt: Prompt) -> Reply:
        """Send one request, and repeat it while it fails for a reason that may pass."""
        import tenacity

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            wait=self._wait,
            stop=self._is_enough,
            sleep=self._sleep,
            reraise=True,
        )
        return await retrying(_once, client, self._endpoint, prompt)

    def _is_enough(self, state: Any) -> bool:
        return state.attempt_number >= self._endpoint.num_attempts or self._stop is not None

    def _wait(self, state: Any) -> float:
        """Compute the seconds to the next attempt: the server's, else exponential with jitter."""
        longest = self._endpoint.first_wait_seconds * 2.0 ** (state.attempt_number - 1)
        error = state.outcome.exception()
        if isinstance(error, _TransientError) and error.wait_seconds is not None:
            # A little more, so that those who were told the same do not come back together.
            asked = error.wait_seconds + random.uniform(0, self._endpoint.first_wait_seconds)
            return min(asked, _LONGEST_WAIT_SECONDS)
        return random.uniform(0, min(longest, _LONGEST_WAIT_SECONDS))

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not longer than there are requests that may succeed."""
        try:
            async with asyncio.timeout(seconds):
                await self._has_stopped.wait()
        except TimeoutError:
            return

    def _count_failure(self, why: str) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._end(
                RunError(
                    f"{MAX_FAILURES_IN_A_ROW} requests in a row got no answer from "
                    f"{self._endpoint.url}; the last: {why}",
                    "the replies so far are kept: the same command asks only for the others",
                )
            )

    def _end(self, error: AlignctlError) -> None:
        self._stop = self._stop or error
        self._has_stopped.set()


def _client(endpoint: Endpoint) -> "openai.AsyncOpenAI":
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"judging needs the package {error.name}, which is not installed",
            "pip install -e '.[mt-bench]'",
        ) from error
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai.AsyncOpenAI(
        api_key=endpoint.key,
        base_url=endpoint.url,
        timeout=endpoint.timeout_seconds,
        max_retries=0,  # tenacity repeats, where every attempt can be seen
    )


async def _once(client: "openai.AsyncOpenAI", endpoint: Endpoint, prompt: Prompt) -> Reply:
    """Send one request, once."""
    import openai

    messages: Any = prompt.messages
    try:
        # The client's own limit is for each read: a server that drips would never reach it.
        async with asyncio.timeout(endpoint.timeout_seconds):
            answer = await client.chat.completions.with_raw_response.create(
                model=endpoint.model, messages=messages, extra_body=dict(endpoint.parameters)
            )
            text = answer.text
    except (TimeoutError, openai.APITimeoutError):
        raise _TransientError(f"no answer within {endpoint.timeout_seconds:g} s") from None
    except openai.APIConnectionError as error:
        raise _TransientError(_connection_failure(error)) from None
    except openai.APIStatusError as error:
        raise _explain(error, endpoint, prompt) from None
    return _reply(text)


def _reply(text: str) -> Reply:
    try:
        completion = _Completion.model_validate_json(text)
    except ValidationError:
        raise _TransientError("the answer is not a chat completion") from None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Reply(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        time=time.time(),
    )


def _explain(
    error: "openai.APIStatusError", endpoint: Endpoint, prompt: Prompt | None = None
) -> Exception:
    """Explain what an HTTP status means for us."""
    said = f"{error.status_code}: {_printable(error.message, endpoint, prompt)}"
    match error.status_code:
        case 401 | 403:
            return UserError(
                f"{endpoint.url} does not accept the key of {endpoint.key_variable}: {said}",
                f"export {endpoint.key_variable}=...; or --judge-key-variable NAME",
            )
        case 404:
            return UserError(
                f"{endpoint.url} has no judge {endpoint.model!r}: {said}",
                "check --judge-model and --judge-url; the URL often ends in /v1",
            )
        case 429 if error.code == _OUT_OF_QUOTA:
            return RunError(
                f"the account at {endpoint.url} is out of quota: {said}",
                "the replies so far are kept: the same command asks only for the others",
            )
        case 408 | 409 | 425 | 429:
            return _TransientError(said, _read_wait(error))
        case status if status >= 500:
            return _TransientError(said, _read_wait(error))
    return _RefusedError(said)


def _read_wait(error: "openai.APIStatusError") -> float | None:
    """Read the seconds that the server asks us to wait; None for a date, or if it asks nothing."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _connection_failure(error: "openai.APIConnectionError") -> str:
    return f"the connection failed ({type(error.__cause__ or error).__name__})"


def _printable(text: str, endpoint: Endpoint, prompt: Prompt | None) -> str:
    """Make a server's words fit for a terminal; keys and prompts that it repeats are hidden."""
    text = text.replace(endpoint.key, "***") if endpoint.key != NO_KEY else text
    lines = f"{prompt.system}\n{prompt.user}".splitlines() if prompt else []
    for line in sorted((line.strip() for line in lines), key=len, reverse=True):
        if len(line) > 8:
            text = text.replace(line, "...")
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


async def _look(endpoint: Endpoint) -> str | None:
    client = _client(endpoint)
    import openai

    async with client:
        for attempt in range(3):
            try:
                async with asyncio.timeout(30):
                    answer = await client.with_raw_response.models.list()
                return _remark(answer.text, endpoint)
            except openai.APIStatusError as error:
                if error.status_code in (401, 403):
                    raise _explain(error, endpoint) from None
                return None  # not every server has such a list
            except (TimeoutError, openai.APIConnectionError) as error:
                last = error
                await asyncio.sleep(endpoint.first_wait_seconds * attempt)
    why = _connection_failure(last) if isinstance(last, openai.APIConnectionError) else "no answer"
    raise UserError(
        f"no judge is at {endpoint.url}: {why}",
        "check --judge-url, and that the server has started",
    )


def _remark(text: str, endpoint: Endpoint) -> str | None:
    try:
        names = [each.id for each in _Models.model_validate_json(text).data]
    except ValidationError:
        return None
    if not names or endpoint.model in names:
        return None
    near = difflib.get_close_matches(endpoint.model, names, n=1)
    known = f"did you mean {near[0]}?" if near else f"it lists {', '.join(names[:5])}"
    return f"{endpoint.url} does not list a model named {endpoint.model!r}; {known}"
