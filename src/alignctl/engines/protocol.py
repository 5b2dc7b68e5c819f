"""What a stage sees of an engine, whichever library trains.

An engine is one rank's part of a sharded model with its optimizer. It hides how the model is cut,
scheduled and stored; a stage sees which share of each batch is its own, and that every number an
engine returns is the same on all ranks. Every method is called by all ranks together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from alignctl.algorithms.loss import Loss
from alignctl.checkpoints.manifest import Base, FileRecord
from alignctl.checkpoints.source import Source
from alignctl.config.sections import Head, Lora, Model
from alignctl.data.batch import TokenBatch
from alignctl.engines.metrics import StepMetrics
from alignctl.errors import RunError


class NonFiniteError(RunError):
    """A loss or a gradient that is not finite; nothing was updated."""


def too_small(loss_scale: float, loss: float) -> NonFiniteError:
    """Return the error of a gradient that float16 cannot hold at the smallest loss scale."""
    return NonFiniteError(
        f"the gradient is not finite in float16 at the smallest loss scale, {loss_scale:g}, and a "
        f"loss of {loss:.4f}; bf16 holds it"
    )


class Engine(Protocol):
    """A sharded model with its optimizer: weights are loaded or resumed before it is used.

    A run that starts calls `load_weights`, then `create_optimizer`; one that goes on calls
    `create_optimizer`, then is given to `checkpoints.resume`.
    """

    @property
    def head(self) -> Head:
        """Top of the model: losses get `Output` from "lm", `Scores` from the others."""

    architecture: Model
    """The model that it holds."""

    dtype: torch.dtype
    """Of weights."""

    lora: Lora | None
    """The adapters that are trained; None: all weights are."""

    base: Base | None
    """The model that the adapters belong to."""

    @property
    def checkpoint_format(self) -> Literal["mcore", "hf"]:
        """Format that `write` writes."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the vocabulary in its checkpoints."""

    @property
    def layout(self) -> dict[str, int | bool]:
        """Layout at which a checkpoint must have been saved to be read."""

    @property
    def data_parallel_rank(self) -> int:
        """Number of the share of each batch that is this rank's."""

    @property
    def data_parallel_size(self) -> int:
        """Number of shares of each batch."""

    @property
    def loss_scale(self) -> float | None:
        """Factor by which losses are multiplied at present, so that float16 holds their gradients.

        None in other precisions.
        """

    @property
    def skipped_steps(self) -> int:
        """Number of steps so far that were left out: float16 could not hold the gradient.

        Such a step moves neither weights nor moments, nor the learning rate along its course, but
        it counts, and its batch is not seen again: as in Megatron-LM. The loss scale follows.
        """

    def load_weights(self, source: Source, *, seed: int = 0) -> None:
        """Fill the model from a checkpoint of any kind and layout; no optimizer state.

        Args:
            source: The checkpoint.
            seed: Of a score head that the source, a policy, does not have: it is drawn from
                N(0, 1 / (hidden_size + 1)), the same one at every layout.

        Raises:
            UserError: A weight is not finite, or a file is damaged.
        """

    def create_optimizer(self) -> None:
        """Create AdamW over the weights as they are."""

    def train_step(
        self,
        micro_batches: Sequence[TokenBatch],
        loss: Loss,
        *,
        learning_rate: float,
        is_stop_requested: bool = False,
    ) -> StepMetrics:
        """Take one optimizer step over this rank's micro batches; every rank has as many.

        Raises:
            NonFiniteError: The loss or the gradient norm is not finite, in float16 at the smallest
                loss scale. The weights and the optimizer are as they were before.
        """

    def evaluate(self, micro_batches: Sequence[TokenBatch], loss: Loss) -> StepMetrics:
        """Compute loss and metrics without an update; every rank has as many micro batches."""

    def document_outputs(
        self, micro_batches: Sequence[TokenBatch], num_documents: int
    ) -> NDArray[np.float64]:
        """Compute one number per document: the summed log-probability of its targets, or its score.

        Nothing is dropped out and nothing is learned; computed in float32.

        Args:
            micro_batches: This rank's share; every rank has as many.
            num_documents: Documents D of the data; `TokenBatch.rows` are numbers below it.

        Returns:
            By document number `[D]`, the same on every rank; NaN for those in no rank's batches.
        """

    def write(self, folder: Path, source: Source, tokenizer: Path | None) -> dict[str, FileRecord]:
        """Write a checkpoint's files, all but its manifest: weights, state, auxiliary files.

        Args:
            folder: Where to, which is there and empty.
            source: The model the run started from, for its config and tokenizer.
            tokenizer: Folder of the tokenizer it is trained with, if not the source's own.

        Returns:
            Sizes and checksums of files, of all ranks', by their names; others may be there too.
        """

    def read(self, checkpoint: Path) -> None:
        """Restore what `write` wrote: weights, or adapters on their base, and the state.

        The state is the optimizer's and the random generators'.

        Args:
            checkpoint: Of the same layout, and whole: both were looked at.
        """
