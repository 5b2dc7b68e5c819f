"""The models of a run, and how long its micro batches can be."""

from dataclasses import dataclass

from alignctl.config.numbers import Processes
from alignctl.config.sections import Head, Optimizer, Parallel, Section


class RoleParallel(Section):
    """How a model beside the policy is laid over the same GPUs; what remains is data parallel.

    All else is as `parallel` says.
    """

    tp: Processes | None = None
    """Tensor-parallel ranks; null: the policy's."""

    pp: Processes | None = None
    """Pipeline stages; null: the policy's."""

    def beside(self, policy: Parallel) -> Parallel:
        """Return the layout, beside that of the policy."""
        return policy.model_copy(update={"tp": self.tp or policy.tp, "pp": self.pp or policy.pp})


class RoleSettings(Section):
    """A model beside the policy."""

    parallel: RoleParallel = RoleParallel()


class Roles(Section):
    """The models beside the policy."""

    reference: RoleSettings = RoleSettings()
    reward: RoleSettings = RoleSettings()


class ValuedRoles(Roles):
    """The same where one predicts values."""

    value: RoleSettings = RoleSettings()


@dataclass(frozen=True)
class ModelRole:
    """A model of a run.

    Attributes:
        parallel: Its layout.
        head: Its output layer; a scoring model that is loaded may have one of another kind.
        optimizer: What it learns with; None: it is frozen.
    """

    parallel: Parallel
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
