"""Progress of generation: prompts answered, tokens per second, the time left."""

from alignctl import console
from alignctl.reporting.progress.run import duration
from alignctl.reporting.progress.stopwatch import Stopwatch


class AnswersProgress:
    """Counts answered prompts and their tokens, and says so every few seconds."""

    def __init__(self, verb: str, total: int, done: int = 0) -> None:
        """Start the clock.

        Args:
            verb: What is being done, as "generating".
            total: Prompts in all.
            done: Those that were answered before.
        """
        self._verb, self._total, self._first = verb, total, done
        self._done, self._tokens = done, 0
        self._watch = Stopwatch()

    def advance(self, num_tokens: int) -> None:
        """Count one more prompt, and the tokens of its answers."""
        self._done += 1
        self._tokens += num_tokens
        if self._watch.take_turn():
            left = self.seconds / (self._done - self._first) * (self._total - self._done)
            console.say(
                f"{self._verb}: {self._done:,} of {self._total:,} prompts, "
                f"{self.tokens_per_second:,.0f} tokens/s, {duration(left)} left"
            )

    @property
    def tokens(self) -> int:
        """Tokens since the start."""
        return self._tokens

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self._watch.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all answers since the start."""
        return self._tokens / self.seconds
