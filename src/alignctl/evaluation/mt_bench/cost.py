"""What judging costs: estimated before it begins, counted when it is done."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignctl.evaluation.mt_bench.judge_prompts import Prompt
from alignctl.evaluation.mt_bench.replies import Reply

BYTES_PER_TOKEN = 4
"""Of English text with the tokenizers in use; a judge's own is not known here."""

_MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens, as the judge's price list has them; None: not known."""

    prompt: float | None = None
    completion: float | None = None

    @property
    def are_known(self) -> bool:
        """True if a price is known."""
        return self.prompt is not None or self.completion is not None

    def add_up(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Add up the US dollars for so many tokens."""
        read = prompt_tokens * (self.prompt or 0.0)
        written = completion_tokens * (self.completion or 0.0)
        return (read + written) / _MILLION


def estimate(prompts: Sequence[Prompt], max_tokens: int | None, prices: Prices) -> str:
    """Estimate in words what these prompts will cost at most."""
    read = sum(_tokens(prompt) for prompt in prompts)
    text = f"about {read:,} prompt tokens"
    if max_tokens is None:
        return text + (f", ${prices.add_up(read, 0):.2f} without the replies" * prices.are_known)
    written = max_tokens * len(prompts)
    text += f" and at most {written:,} of replies"
    return text + (f": at most ${prices.add_up(read, written):.2f}" * prices.are_known)


@dataclass
class Usage:
    """Tokens of replies that are new, as the server counts them."""

    num_replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_uncounted: int = 0

    def add(self, reply: Reply) -> None:
        """Count a reply in."""
        self.num_replies += 1
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            self.num_uncounted += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0

    def told(self, prices: Prices) -> str:
        """Describe the sum in words."""
        text = (
            f"{self.num_replies} new judgments: {self.prompt_tokens:,} prompt tokens and "
            f"{self.completion_tokens:,} of replies"
        )
        if prices.are_known:
            text += f": ${prices.add_up(self.prompt_tokens, self.completion_tokens):.2f}"
        if self.num_uncounted:
            text += f"; of {self.num_uncounted} the server has not told any"
        return text


def cut(replies: Iterable[Reply]) -> int:
    """Count the replies that were cut at their longest length."""
    return sum(reply.finish_reason == "length" for reply in replies)


def _tokens(prompt: Prompt) -> int:
    return len(f"{prompt.system}{prompt.user}".encode()) // BYTES_PER_TOKEN + 8
