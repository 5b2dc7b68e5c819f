"""The padding-free micro batch, the one shape in which tokens reach an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

IGNORE = -100
"""The target of a position where nothing is learned (torch's default `ignore_index`)."""


@dataclass(frozen=True, eq=False)
class Document:
    """One tokenised text: L+1 tokens, which give L inputs and L targets.

    Attributes:
        tokens: Token ids `[L+1]`.
        supervised: `[L+1]`; True where the model learns to produce this very token.
        row: The document's number in the prepared data; `SFTData.where` names its file and line.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    row: int


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Documents laid end to end. There is no padding, so no token id is ever compared with one.

    Attributes:
        tokens: Inputs `[T]`, int64.
        targets: What each position should predict `[T]`, int64; `IGNORE` where nothing is learned.
            They are shifted already: `targets[i]` is the token after `tokens[i]` in the same
            document, never the first token of the next document.
        cu_seqlens: Document boundaries: document `d` is `[cu_seqlens[d], cu_seqlens[d+1])`;
            starts with 0, ends with T. Attention must not cross them.
        rows: The number of each document in the prepared data, -1 for a filler.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    cu_seqlens: tuple[int, ...]
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        """Holds our own code to the shapes above."""
        assert self.tokens.shape == self.targets.shape == (self.cu_seqlens[-1],)
        assert self.cu_seqlens[0] == 0
        assert len(self.rows) == len(self.cu_seqlens) - 1

    @classmethod
    def from_documents(cls, documents: Sequence[Document]) -> Self:
        """Lays documents end to end, in the order given. Each has at least two tokens."""
        if not documents:
            return cls.filler()
        targets = [
            np.where(document.supervised[1:], document.tokens[1:], IGNORE) for document in documents
        ]
        return cls(
            tokens=np.concatenate([document.tokens[:-1] for document in documents]).astype(
                np.int64
            ),
            targets=np.concatenate(targets).astype(np.int64),
            cu_seqlens=(0, *accumulate(len(document.tokens) - 1 for document in documents)),
            rows=tuple(document.row for document in documents),
        )

    @classmethod
    def filler(cls) -> Self:
        """One token and no target: what a rank forwards when it has run out of documents.

        Every rank must take part in every collective, so a rank cannot simply skip its turn; one
        token rather than none, because attention kernels refuse empty inputs.
        """
        return cls(
            tokens=np.zeros(1, np.int64),
            targets=np.full(1, IGNORE, np.int64),
            cu_seqlens=(0, 1),
            rows=(-1,),
        )

    @property
    def num_tokens(self) -> int:
        """Input tokens T; the single token of a filler counts."""
        return len(self.tokens)

    @property
    def num_targets(self) -> int:
        """Positions that are learned: this batch's weight in the global token count."""
        return int(np.count_nonzero(self.targets != IGNORE))

    @property
    def targets_per_document(self) -> NDArray[np.int64]:
        """Positions that are learned in each document `[D]`."""
        learned = (self.targets != IGNORE).astype(np.int64)
        return np.add.reduceat(learned, self.cu_seqlens[:-1])

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each token in its document `[T]`, int64: 0 at every boundary."""
        starts = np.asarray(self.cu_seqlens[:-1], np.int64)
        return np.arange(self.num_tokens, dtype=np.int64) - np.repeat(
            starts, np.diff(np.asarray(self.cu_seqlens, np.int64))
        )

    @property
    def max_seqlen(self) -> int:
        """Inputs of the longest document."""
        return max(end - start for start, end in pairwise(self.cu_seqlens))


class Pairs(NamedTuple):
    """The comparisons that a batch of preferences makes.

    Attributes:
        better: Place of the better answer among the documents of the batch `[P]`.
        worse: Place of the worse one `[P]`.
        share: One over the pairs of the same prompt `[P]`: every prompt weighs one in all.
        num_prompts: Prompts with at least one pair: the sum of the shares.
    """

    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    share: NDArray[np.float64]
    num_prompts: int


@dataclass(frozen=True, eq=False)
class PreferenceBatch(TokenBatch):
    """A batch whose documents come in groups: the answers to one prompt, each after that prompt.

    Every token of a document is an input, so that a reward model reads the last one (EOS), at
    `cu_seqlens[d + 1] - 1`; that position alone has no target. A group is never cut, so its pairs
    are always seen together. A filler is a document in no group.

    Attributes:
        groups: Group boundaries: the answers to prompt `g` are the documents
            `[groups[g], groups[g+1])`; starts with 0, ends with the number of answers A.
        scores: How good each answer is `[A]`, finite; only their order within a group and their
            differences have a meaning.
    """

    groups: tuple[int, ...] = (0,)
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        """Holds our own code to the shapes above."""
        super().__post_init__()
        assert self.groups[0] == 0
        assert len(self.scores) == self.groups[-1] <= len(self.rows)

    @classmethod
    def from_groups(cls, groups: Sequence[Sequence[Document]], scores: NDArray[np.float64]) -> Self:
        """Lays groups end to end, in the order given; of none: a filler.

        Args:
            groups: The answers to each prompt.
            scores: The scores of all of them `[A]`, group after group.
        """
        answers = [_with_every_token_an_input(document) for group in groups for document in group]
        return replace(
            cls.from_documents(answers), groups=(0, *accumulate(map(len, groups))), scores=scores
        )

    @cached_property
    def pairs(self) -> Pairs:
        """Every two answers to one prompt of which one is scored higher; ties are no pairs."""
        group = np.repeat(np.arange(len(self.groups) - 1), np.diff(self.groups))
        is_above = self.scores[:, None] > self.scores[None, :]
        better, worse = np.nonzero(is_above & (group[:, None] == group[None, :]))
        count = np.bincount(group[better], minlength=len(self.groups) - 1)
        return Pairs(better, worse, 1 / count[group[better]], int(np.count_nonzero(count)))


def _with_every_token_an_input(document: Document) -> Document:
    """Followed by one more token, which is the one that is neither an input nor a target."""
    return Document(
        np.append(document.tokens, np.int32(0)),
        np.append(document.supervised, np.False_),
        document.row,
    )
