"""Progress of work on a corpus: share done, speed, what is left."""

from alignctl import console
from alignctl.reporting.progress.stopwatch import Stopwatch


class CorpusProgress:
    """Says how far the work is, every few seconds; call it after every block."""

    def __init__(self, verb: str, total_bytes: int) -> None:
        """Start the clock.

        Args:
            verb: What is being done, as "tokenising".
            total_bytes: Bytes of all files, as they lie on the disk.
        """
        self._verb = verb
        self._total = total_bytes
        self._watch = Stopwatch()
        self._before: tuple[int, int, int] = (0, 0, 0)

    def resume(self, consumed: int, text_bytes: int, tokens: int) -> None:
        """Leave out of the speed what an earlier run did."""
        self._before = (consumed, text_bytes, tokens)
        share = 100 * consumed / max(self._total, 1)
        console.say(f"{self._verb}: going on after {share:.0f} %, which an earlier run did")

    def __call__(self, consumed: int, text_bytes: int, tokens: int = 0) -> None:
        """Note what is done so far: bytes of files, bytes of text, and tokens."""
        if not self._watch.take_turn():
            return
        share = 100 * consumed / max(self._total, 1)
        left = ""
        if consumed > self._before[0]:
            done = consumed - self._before[0]
            rest = (self._total - consumed) * self._watch.seconds / done
            left = f", {rest:.0f} s left"
        console.say(f"{self._verb}: {share:.0f} %, {self.speed(text_bytes, tokens)}{left}")

    def speed(self, text_bytes: int, tokens: int = 0) -> str:
        """Say the speed of this run."""
        seconds = self._watch.seconds
        words = f"{(text_bytes - self._before[1]) / 1e6 / seconds:.1f} MB/s"
        if tokens:
            words += f", {(tokens - self._before[2]) / seconds:,.0f} tokens/s"
        return words
