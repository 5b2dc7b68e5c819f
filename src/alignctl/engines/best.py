"""The best checkpoint of a run by what it measures on held-out rows, and the end of patience.

All of it follows from the recorded validations, so a resumed run counts as one that was not
interrupted.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignctl.config.run import TrainingConfig
from alignctl.run_folder import RunFolder


@dataclass(eq=False)
class Watch:
    """What is known of a run's validations so far, those before its first step left out.

    Attributes:
        metric: What is watched.
        is_higher_better: Its direction.
        patience: Validations in a row without a better one, after which the run ends; None: never.
        keeps_best: Whether the best checkpoint is kept, and linked.
        step: Of the best validation so far.
        value: What it measured.
        num_worse: Validations since then.
    """

    metric: str
    is_higher_better: bool
    patience: int | None = None
    keeps_best: bool = False
    step: int | None = None
    value: float | None = None
    num_worse: int = 0

    @classmethod
    def of(cls, config: TrainingConfig) -> "Watch":
        """Make the watch that a configuration asks for."""
        metric, direction = config.watched
        settings = config.checkpoint
        return cls(metric, direction == "max", config.train.patience, bool(settings.keep_best))

    def observe(self, step: int, measured: Mapping[str, Any]) -> bool:
        """Note a validation, and tell whether it is the best so far; one that lacks it never is."""
        if not step:
            return False
        value = float(measured.get(self.metric, math.nan))
        is_better = not math.isnan(value) and (
            self.value is None
            or (value > self.value if self.is_higher_better else value < self.value)
        )
        if is_better:
            self.step, self.value, self.num_worse = step, value, 0
        else:
            self.num_worse += 1
        return is_better

    def recall(self, folder: RunFolder, rows: Iterable[Mapping[str, Any]], *, links: bool) -> None:
        """Note the validations that an earlier attempt has recorded.

        Args:
            folder: The run folder.
            rows: Rows of its metrics.
            links: Whether this process is the one that links.
        """
        for row in rows:
            if row["kind"] == "validation":
                self.observe(row["step"], row)
        # It was killed before it could link, or keeps its best only since now.
        is_there = (folder.checkpoints / f"iter_{self.step or 0:07d}").is_dir()
        if links and self.keeps_best and self.step is not None and is_there:
            link_best(folder, self.step)

    @property
    def is_over(self) -> bool:
        """True if patience has ended."""
        return self.patience is not None and self.num_worse >= self.patience

    @property
    def result(self) -> dict[str, Any]:
        """Entries of result.json: the best validation, where it is watched."""
        if self.step is None or not (self.keeps_best or self.patience):
            return {}
        best = {"metric": self.metric, "step": self.step, "value": self.value}
        return {"best": best | ({"checkpoint": "best"} if self.keeps_best else {})}

    def describe_best(self) -> str:
        """Say which validation is the best so far."""
        return f"best {self.metric} so far: {self.value:.4g} at step {self.step}"

    def describe_end(self, step: int, total: int) -> str:
        """Say why a run ends before its last step."""
        known = "" if self.step is None else f"; {self.describe_best()}"
        return (
            f"stopped after step {step} of {total}: no better {self.metric} in {self.num_worse} "
            f"validations (train.patience){known}"
        )


def link_best(folder: RunFolder, step: int) -> None:
    """Point `best` to a checkpoint; it always leads to a whole one, as a link is replaced at once.

    Raises:
        OSError: The folder is not writable.
    """
    partial = folder.path / ".best.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(f"checkpoints/iter_{step:07d}", target_is_directory=True)
    partial.replace(folder.best)
