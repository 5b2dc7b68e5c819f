"""The models of a run, and how long its micro batches can be."""

from dataclasses import dataclass

from alignctl.config.sections import Head, Optimizer


@dataclass(frozen=True)
class ModelRole:
    """A model of a run.

    Attributes:
        head: Its output layer; a scoring model that is loaded may have one of another kind.
        optimizer: What it learns with; None: it is frozen.
    """

    head: Head = "lm"
    optimizer: Optimizer | None = None

    @property
    def is_trained(self) -> bool:
        """True if it learns."""
        return self.optimizer is not None


@dataclass(frozen=True)
class LongestBatch:
    """A micro batch as long as it can be.

    Attributes:
        documents: Texts in it.
        length: Tokens of each.
        learned: Tokens of each that are learned from.
    """

    documents: int
    length: int
    learned: int
