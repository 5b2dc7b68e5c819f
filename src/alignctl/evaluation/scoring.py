"""Scores of texts by a reward model, on the training engine, in this process."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from alignctl.checkpoints.find import find
from alignctl.checkpoints.source import Source, require_reward
from alignctl.config.precision import Precision
from alignctl.config.sections import Parallel
from alignctl.data.batch import Document, PreferenceBatch, TokenBatch, count_computed
from alignctl.data.distinct import find_distinct
from alignctl.data.micro_batches import dealt_groups
from alignctl.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from alignctl.errors import RunError, UserError
from alignctl.rollouts import library

_BATCHES = 16
"""Micro batches between two calls for progress."""


class RewardScorer:
    """A reward model that scores documents; a context manager, which loads it.

    Attributes:
        source: The checkpoint.
        tokenizer: Its tokenizer.
        max_length: Most tokens of a document.
    """

    def __init__(
        self,
        load: Path,
        *,
        tokenizer: Path | None = None,
        precision: Precision | None = None,
        max_length: int | None = None,
        batch: int,
    ) -> None:
        """Check the model and the settings; no weight is read.

        Args:
            load: A reward model of any kind: Hugging Face, Megatron, a run folder.
            tokenizer: Folder of the tokenizer; None: beside the model.
            precision: None: bf16 on a GPU, fp32 without.
            max_length: Most tokens of a document; None: the model's longest sequence.
            batch: Documents in a micro batch.

        Raises:
            UserError: It is no reward model, or has no such long sequences.
        """
        library.be_quiet()
        self.source: Source = find(load)
        require_reward(self.source, str(self.source.path))
        longest = self.source.model.max_position_embeddings
        if self.source.model.traits.is_rotary and (max_length or 0) > longest:
            raise UserError(
                f"{self.source.path}: max_length {max_length} exceeds the model's longest sequence "
                f"of {longest} tokens (max_position_embeddings)"
            )
        self.tokenizer: Tokenizer = load_tokenizer(self.source.tokenizer_folder(tokenizer))
        check_fits(self.tokenizer, self.source.model.vocab_size)
        self.max_length = max_length or longest
        self._precision, self._batch = precision, batch
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Build the model and load its weights."""
        warnings.filterwarnings("ignore", module=r"megatron\.")  # of libraries it can do without
        # Torch and Megatron-Core take seconds, which a wrong option is not to wait for; and the
        # latter's modules are imported after `load` alone.
        from alignctl.engines.megatron import cpu as megatron_cpu

        megatron_cpu.load()
        from alignctl.engines.device import IS_GPU
        from alignctl.engines.megatron import groups as megatron_groups
        from alignctl.engines.megatron.engine import MegatronEngine
        from alignctl.rollouts import alone

        without_dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
        with ExitStack() as stack:
            stack.enter_context(alone.process_group())
            if not IS_GPU:
                megatron_cpu.install()
            megatron_groups.lay_out([Parallel()], seed=0, timeout_minutes=10)
            self._engine = MegatronEngine(
                self.source.model.model_copy(update=without_dropout),
                Parallel(),
                precision=self._precision or ("bf16" if IS_GPU else "fp32"),
                seq_length=self.max_length,
                optimizer=None,
                head=self.source.head,
            )
            stack.callback(megatron_groups.leave)
            self._engine.load_weights(self.source)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._engine
        self._stack.close()

    def scores(
        self,
        documents: Sequence[NDArray[np.int32]],
        prompts: Sequence[int],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.float64]:
        """Score each document, `[D]`; equal documents have scores that are equal to the last bit.

        Args:
            documents: Token ids `[L]`, int32, to the last one that counts; each at most
                `max_length` long.
            prompts: The number of the prompt that each is about: those of one share what they begin
                with.
            on_progress: Told the documents done, and how many there are.

        Raises:
            RunError: A score is not finite.
        """
        firsts, places = find_distinct(tokens.tobytes() for tokens in documents)
        distinct = [
            Document(documents[number], np.ones(len(documents[number]), np.bool_), place)
            for place, number in enumerate(firsts)
        ]
        groups: dict[int, list[int]] = {}
        for place, number in enumerate(firsts):
            groups.setdefault(prompts[number], []).append(place)
        parts = dealt_groups(
            list(groups.values()),
            lambda part: count_computed([distinct[place] for place in part]),
            micro_batch_size=self._batch,
            dp_rank=0,
            dp_size=1,
        )
        batches = [
            PreferenceBatch.from_groups(
                [[distinct[place] for place in group] for group in part],
                np.zeros(sum(map(len, part))),
                share_prompts=True,
            )
            for part in parts
        ]
        return self.of_batches(batches, len(distinct), on_progress)[places]

    def of_batches(
        self,
        batches: Sequence[TokenBatch],
        num_documents: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.float64]:
        """Compute scores by document number `[D]`; NaN for those that are in no batch.

        Raises:
            RunError: A score is not finite.
        """
        found = np.full(num_documents, np.nan)
        done, total = 0, sum(len(batch.rows) for batch in batches)
        for start in range(0, len(batches), _BATCHES):
            part = batches[start : start + _BATCHES]
            rows = _rows(part)
            scores = self._engine.document_outputs(part, num_documents)[rows]
            if not np.isfinite(scores).all():
                raise RunError(
                    f"{self.source.path}: {int((~np.isfinite(scores)).sum())} scores are not finite"
                )
            found[rows] = scores
            done += len(rows)
            on_progress(done, total)
        offset = self.source.manifest.score_offset if self.source.manifest else None
        return found + (offset or 0.0)


def _rows(batches: Iterable[TokenBatch]) -> list[int]:
    return [row for batch in batches for row in batch.rows if row >= 0]
