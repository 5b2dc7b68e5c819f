"""What the contenders of gpu.py learn from, and how their steps are timed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignctl.config.sections import Model

METHODS = ("sft", "dpo", "grpo")
MODELS = {
    "llama-1b": Model(
        family="llama2",
        num_layers=22,
        hidden_size=2048,
        num_attention_heads=32,
        num_query_groups=4,
        ffn_hidden_size=5632,
        vocab_size=32000,
        max_position_embeddings=2048,
        rotary_base=10000.0,
        tie_embeddings=False,
    ),
    "bloom-1b1": Model(
        family="bloom",
        num_layers=24,
        hidden_size=1536,
        num_attention_heads=16,
        num_query_groups=16,
        ffn_hidden_size=6144,
        vocab_size=250880,
        max_position_embeddings=2048,
        tie_embeddings=True,
    ),
}
_TINY = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "vocab_size": 320}
_TINY |= {"num_attention_heads": 2, "num_query_groups": 2, "max_position_embeddings": 128}


@dataclass(frozen=True)
class Scale:
    """How much there is to do.

    Attributes:
        length: Longest row, in tokens.
        groups: Prompts of an optimizer step.
        samples: Answers to each, of grpo; dpo compares two, sft learns one for each of these.
        micro_batch: Rows at a time of those who pad, and as many tokens for the others.
        warm_up: Steps before the clock starts.
        steps: Steps on the clock.
    """

    length: int
    groups: int
    samples: int
    micro_batch: int
    warm_up: int
    steps: int


FULL = Scale(2048, 4, 4, 4, 3, 6)
TINY = Scale(64, 2, 2, 2, 1, 2)


def architecture(name: str, *, is_tiny: bool) -> Model:
    """Return a model; as tiny as tests want it."""
    model = MODELS[name]
    return model.model_copy(update=_TINY) if is_tiny else model


def make_groups(method: str, scale: Scale, vocabulary: int) -> list[list[tuple[list[int], ...]]]:
    """Draw the rows of a step: of each group its (prompt, answer) pairs, the prompt in common.

    Prompts have a quarter of the longest row, answers a quarter to three quarters.
    """
    random = np.random.default_rng(7)
    quarter = scale.length // 4
    size = 2 if method == "dpo" else scale.samples
    number = scale.groups * scale.samples // size
    groups = []
    for _ in range(number):
        prompt = random.integers(4, vocabulary, quarter).tolist()
        lengths = random.integers(quarter, 3 * quarter, size)
        groups.append([(prompt, random.integers(4, vocabulary, n).tolist()) for n in lengths])
    return groups


def run_steps(step: Callable[[], Any], scale: Scale, *, tokens: int) -> dict[str, float]:
    """Take steps; return the median seconds of one, tokens per second and peak memory."""
    is_gpu = torch.cuda.is_available()
    seconds = []
    for number in range(scale.warm_up + scale.steps):
        if number == scale.warm_up and is_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = now()
        step()
        if number >= scale.warm_up:
            seconds.append(now() - before)
    return summary(seconds, tokens)


def attempt(act: Callable[[], Any]) -> Any:
    """Measure, or say what failed: what one case cannot must not hide what the others can."""
    try:
        return act()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first[:90]}"}


def summary(seconds: list[float], tokens: int) -> dict[str, float]:
    """Describe steps of so many tokens that each took so long."""
    median = float(np.median(seconds))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": median, "tokens_per_second": tokens / median, "peak_gib": peak / 2**30}


def now() -> float:
    """Read the clock once the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def count_tokens(groups: list[list[tuple[list[int], ...]]]) -> int:
    """Count the tokens of all rows, each with its prompt."""
    return sum(len(prompt) + len(answer) for group in groups for prompt, answer in group)


def chunked(rows: list[Any], size: int) -> Iterator[list[Any]]:
    """Cut rows into parts of a size."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
