"""The contract between losses and engines: sums and their weight, divided once by the engine."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Output(NamedTuple):
    """What an engine computes for a micro batch with a language model.

    Attributes:
        logprobs: Log-probability of each target `[T]`, natural log, fp32, 0 where none is learned.
        is_most_likely: Whether the target was the model's most likely token `[T]`, bool.
        entropy: Entropy of each learned position's distribution `[T]`, nats; None when it was not
            asked for.
    """

    logprobs: Tensor
    is_most_likely: Tensor
    entropy: Tensor | None = None


class Scores(NamedTuple):
    """What an engine computes for a micro batch with a reward model.

    Attributes:
        scores: Output of the head at the last input of each document `[D]`, fp32.
    """

    scores: Tensor


class Values(NamedTuple):
    """What an engine computes for a micro batch with a value model.

    Attributes:
        values: Value of each learned position `[T]`, fp32: what is expected from the prefix that
            ends there; 0 where nothing is learned.
    """

    values: Tensor


@dataclass(frozen=True)
class LossTerms:
    """A loss before its normalisation, all scalars.

    Attributes:
        total: Sum over the micro batch; gradients flow through it.
        weight: What the sum over the whole optimizer step is divided by (tokens, pairs ...).
        metrics: Further sums, divided by the same weight for reporting.
    """

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


class Loss(Protocol):
    """A pure function of what the engine computed and of the batch.

    The engine divides by the global weight of the optimizer step, so that no split into ranks,
    micro batches or packs can change the gradient.
    """

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of `LossTerms.metrics`: ranks without the output layer must know them too."""
        ...

    def __call__(self, output: Any, targets: Tensor, batch: Any) -> LossTerms:
        """Compute the terms of one micro batch.

        Args:
            output: `Output` of a language model, `Scores` of a reward model, `Values` of a value
                model. An engine that fills the batch up may return more tokens or documents than
                the batch has, at the end.
            targets: Targets `[T]` as the output has them.
            batch: The batch as it was given.
        """
        ...
