"""What is asked of a rollout and what comes back, dealt to replicas and packed for the way back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from alignctl.config import rollout
from alignctl.data.micro_batches import partition

Finish = Literal["stop", "length"]
"""Why a completion ended: with a stop token, or because it may not be longer."""

_FINISHES: tuple[Finish, ...] = ("stop", "length")
_HEADER = 3


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_new_tokens: int
    """Most tokens of a completion, its stop token included."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a completion: the end of text, which nothing adds of itself."""
    temperature: float = 1.0
    """What logits are divided by; 0: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that have this probability together."""
    top_k: int | None = None
    """Only so many of the likeliest tokens; None: all."""
    min_p: float = 0.0
    """Only tokens that are at least this likely, as a share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""

    @classmethod
    def of(cls, settings: rollout.Rollout, stop_token_ids: Sequence[int]) -> Self:
        """Take the settings of a configuration, with the tokens that end a text."""
        return cls(
            max_new_tokens=settings.max_new_tokens,
            stop_token_ids=tuple(stop_token_ids),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
        )


@dataclass(frozen=True)
class Request:
    """One completion to sample.

    Attributes:
        prompt: Token ids `[P]`, int32; not empty.
        seed: Of this completion alone, so that it does not matter what else is sampled.
        group: Requests of the same group have the same prompt; they stay on one replica, which
            reads the prompt once.
    """

    prompt: NDArray[np.int32]
    seed: int
    group: int


def draw_seed(*numbers: int) -> int:
    """Draw the seed of one request, of 31 bits, from all that makes it different from others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) >> 1


@dataclass(frozen=True)
class Completion:
    """What was sampled after a prompt.

    Attributes:
        tokens: Token ids `[R]`, int32, R at least 1; a stop token is the last one.
        logprobs: Natural logarithms `[R]`, fp32, of the probabilities that the tokens were drawn
            with: after temperature, penalty, top-k, top-p and min-p. At temperature 0 those of
            temperature 1.
        finish: Why it ended.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish: Finish


@dataclass(frozen=True)
class Generated:
    """All completions of a job.

    Attributes:
        completions: In the order of the requests; None where a request failed twice.
        num_retried: Requests that failed once.
        num_failed: Requests that failed twice.
        version: Of the weights: how many pushes they are.
    """

    completions: list[Completion | None]
    num_retried: int
    num_failed: int
    version: int


def deal_groups(
    requests: Sequence[Request], sampling: Sampling, num_replicas: int
) -> list[list[int]]:
    """Deal requests to replicas, groups whole: as many groups to each, about as many tokens.

    Args:
        requests: All requests of the job.
        sampling: Says how long completions can become.
        num_replicas: Copies of the rollout's model.

    Returns:
        For each replica the places of its requests; those of a group one after the other.
    """
    groups: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.group, []).append(place)
    members = list(groups.values())
    lengths = [
        len(requests[places[0]].prompt) + len(places) * sampling.max_new_tokens
        for places in members
    ]
    shares = partition(lengths, num_replicas)
    return [[place for group in share for place in members[group]] for share in shares]


def pack(found: Mapping[int, Completion]) -> NDArray[np.int32]:
    """Pack completions with their requests' places in one array; every bit is kept."""
    parts: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    for place, each in found.items():
        header = [place, _FINISHES.index(each.finish), len(each.tokens)]
        parts += [np.array(header, np.int32), each.tokens, each.logprobs.view(np.int32)]
    return np.concatenate(parts)


def unpack(packed: NDArray[np.int32]) -> dict[int, Completion]:
    """Undo `pack`."""
    found = {}
    start = 0
    while start < len(packed):
        place, finish, length = packed[start : start + _HEADER].tolist()
        middle, start = start + _HEADER + length, start + _HEADER + 2 * length
        found[place] = Completion(
            packed[middle - length : middle].copy(),
            packed[middle:start].copy().view(np.float32),
            _FINISHES[finish],
        )
    return found
