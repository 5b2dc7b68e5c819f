"""The padding-free micro batch, the one shape in which tokens reach an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

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


@dataclass(frozen=True)
class Pieces:
    """Where pieces of text lie end to end, and which of them go on where another one ends.

    A piece that continues another (its parent) stands right behind it, as if that were there for it
    alone: its positions go on, it sees the parent as a whole and what that continues, and no other
    piece. Documents are the pieces that nobody continues, each with all that it continues.

    Attributes:
        boundaries: Piece `p` is `[boundaries[p], boundaries[p+1])`; starts with 0, ends with T. No
            piece is empty.
        parents: The earlier piece that each continues, -1 for none; () if all are documents.
    """

    boundaries: tuple[int, ...]
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the shapes above."""
        assert self.boundaries[0] == 0
        assert not self.parents or len(self.parents) == len(self.boundaries) - 1
        assert all(-1 <= parent < piece for piece, parent in enumerate(self.parents))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each piece."""
        return [end - start for start, end in pairwise(self.boundaries)]

    @cached_property
    def chains(self) -> list[list[int]]:
        """Pieces that each piece continues, the first one first, and itself at the end."""
        chains: list[list[int]] = []
        for piece in range(len(self.boundaries) - 1):
            parent = self.parents[piece] if self.parents else -1
            chains.append([*(chains[parent] if parent >= 0 else ()), piece])
        return chains

    @property
    def documents(self) -> list[list[int]]:
        """Pieces of each document."""
        continued = set(self.parents)
        return [chain for chain in self.chains if chain[-1] not in continued]

    @property
    def ends(self) -> list[int]:
        """Place of each document's last token."""
        return [self.boundaries[chain[-1] + 1] - 1 for chain in self.documents]

    @property
    def document_lengths(self) -> list[int]:
        """Tokens of each document, with those that it shares with others."""
        lengths = self.lengths
        return [sum(lengths[piece] for piece in chain) for chain in self.documents]

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of all documents' tokens, document by document; shared places occur repeatedly."""
        return np.concatenate(
            [
                np.arange(self.boundaries[piece], self.boundaries[piece + 1])
                for chain in self.documents
                for piece in chain
            ]
        )

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each token in the documents that it is part of `[T]`."""
        lengths = self.lengths
        starts = [sum(lengths[piece] for piece in chain[:-1]) for chain in self.chains]
        shift = np.asarray(starts, np.int64) - np.asarray(self.boundaries[:-1], np.int64)
        return np.arange(self.boundaries[-1], dtype=np.int64) + np.repeat(shift, lengths)

    def with_filler(self, size: int) -> "Pieces":
        """Return the pieces with one more document of `size` tokens at the end."""
        parents = (*self.parents, -1) if self.parents else ()
        return Pieces((*self.boundaries, self.boundaries[-1] + size), parents)


def is_worth_sharing(shared: int, lengths: Sequence[int]) -> bool:
    """Tell whether documents of so many input tokens should begin with `shared` common ones.

    Keys and values of the common tokens are copied for each document, which takes up to a twelfth
    of what a layer keeps of the document. So sharing has to save at least an eighth of the tokens.
    """
    return 8 * shared * (len(lengths) - 1) >= sum(lengths) > 0 < shared


def count_shared(documents: Sequence[Document]) -> int:
    """Count the positions at the start that documents share: the same inputs and targets.

    Of a prompt these are all tokens but the last: that one predicts the first token of the answer,
    which differs between documents. Each document keeps at least the position of its last input
    for itself. 0 where sharing saves too little.
    """
    first, *others = documents
    lengths = [len(document.tokens) - 1 for document in documents]
    shared = min(lengths) - 1 if others else 0
    for other in others:
        same = first.tokens[:shared] == other.tokens[:shared]
        learned, follows = first.supervised[1 : shared + 1], first.tokens[1 : shared + 1]
        same &= learned == other.supervised[1 : shared + 1]
        same &= ~learned | (follows == other.tokens[1 : shared + 1])
        shared = shared if same.all() else int(np.argmin(same))
    return shared if is_worth_sharing(shared, lengths) else 0


def count_computed(documents: Sequence[Document]) -> int:
    """Count the input tokens to compute for documents that share their first positions."""
    inputs = sum(len(document.tokens) - 1 for document in documents)
    return inputs - count_shared(documents) * (len(documents) - 1)


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Documents laid end to end. There is no padding, so no token id is ever compared with one.

    What several documents begin with may stand there once, as a piece that they continue.

    Attributes:
        tokens: Inputs `[T]`, int64.
        targets: What each position should predict `[T]`, int64; `IGNORE` where nothing is learned.
            They are shifted already: `targets[i]` is the token after `tokens[i]` in the same
            document, never the first token of the next document.
        pieces: Where the documents are. Attention must not cross their boundaries, but from a piece
            to those that it continues.
        rows: The number of each document in the prepared data, -1 for a filler.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    pieces: Pieces
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the shapes above."""
        assert self.tokens.shape == self.targets.shape == (self.pieces.boundaries[-1],)
        assert len(self.rows) == len(self.pieces.documents)

    @classmethod
    def from_documents(cls, documents: Sequence[Document]) -> Self:
        """Lay documents end to end, in the order given. Each has at least two tokens."""
        return cls.sharing([[document] for document in documents])

    @classmethod
    def sharing(cls, documents: Sequence[Sequence[Document]], **fields: Any) -> Self:
        """Lay groups end to end, in the order given; of none: a filler.

        Args:
            documents: Those of each group; what they begin with alike stands there once. Each has
                at least two tokens.
            fields: Of a class with more of them.
        """
        if not documents:
            return cls.filler()
        parts: list[Document] = []
        parents: list[int] = []
        for group in documents:
            shared, parent = count_shared(group), -1
            if shared:
                parent = len(parts)
                parts.append(_part(group[0], 0, shared + 1))
                parents.append(-1)
            parts += [_part(document, shared, None) for document in group]
            parents += [parent] * len(group)
        targets = [np.where(part.supervised[1:], part.tokens[1:], IGNORE) for part in parts]
        return cls(
            tokens=np.concatenate([part.tokens[:-1] for part in parts]).astype(np.int64),
            targets=np.concatenate(targets).astype(np.int64),
            pieces=Pieces(
                (0, *accumulate(len(part.tokens) - 1 for part in parts)),
                tuple(parents) if max(parents) >= 0 else (),
            ),
            rows=tuple(document.row for group in documents for document in group),
            **fields,
        )

    @classmethod
    def filler(cls) -> Self:
        """Make a batch of one token and no target, for a rank that has run out of documents.

        Every rank must take part in every collective, so a rank cannot simply skip its turn; one
        token rather than none, because attention kernels refuse empty inputs.
        """
        return cls(
            tokens=np.zeros(1, np.int64),
            targets=np.full(1, IGNORE, np.int64),
            pieces=Pieces((0, 1)),
            rows=(-1,),
        )

    @property
    def num_tokens(self) -> int:
        """Input tokens T that are computed; the single token of a filler counts."""
        return len(self.tokens)

    @cached_property
    def num_document_tokens(self) -> int:
        """Input tokens of all documents; a token that several share counts for each of them."""
        return sum(self.pieces.document_lengths)

    @property
    def num_targets(self) -> int:
        """Positions that are learned: this batch's weight in the global token count."""
        return len(self.learned)

    @cached_property
    def learned(self) -> NDArray[np.int64]:
        """Places that are learned, document by document; shared places occur repeatedly."""
        places = self.pieces.places
        learned: NDArray[np.int64] = places[self.targets[places] != IGNORE]
        return learned

    @cached_property
    def targets_per_document(self) -> NDArray[np.int64]:
        """Positions that are learned in each document `[D]`."""
        lengths = self.pieces.document_lengths
        learned = (self.targets[self.pieces.places] != IGNORE).astype(np.int64)
        return np.add.reduceat(learned, [0, *accumulate(lengths)][:-1])


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

    Every token of a document is an input, so that a reward model reads the last one (EOS); that
    position alone has no target. A group is never cut, so its pairs are always seen together. A
    filler is a document in no group.

    Attributes:
        groups: Group boundaries: the answers to prompt `g` are the documents
            `[groups[g], groups[g+1])`; starts with 0, ends with the number of answers A.
        scores: How good each answer is `[A]`, finite; only their order within a group and their
            differences have a meaning.
    """

    groups: tuple[int, ...] = (0,)
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        """Check the shapes above."""
        super().__post_init__()
        assert self.groups[0] == 0
        assert len(self.scores) == self.groups[-1] <= len(self.rows)

    @classmethod
    def from_groups(
        cls,
        groups: Sequence[Sequence[Document]],
        scores: NDArray[np.float64],
        *,
        share_prompts: bool = False,
    ) -> Self:
        """Lay groups end to end, in the order given; of none: a filler.

        Args:
            groups: The answers to each prompt.
            scores: The scores of all of them `[A]`, group after group.
            share_prompts: Whether what the answers to a prompt begin with stands there once.
        """
        if not groups:
            return cls.filler()
        whole = [[with_every_token_an_input(answer) for answer in group] for group in groups]
        return cls.sharing(
            whole if share_prompts else [[answer] for group in whole for answer in group],
            groups=(0, *accumulate(map(len, groups))),
            scores=scores,
        )

    @cached_property
    def pairs(self) -> Pairs:
        """Pairs of answers to one prompt, one scored higher than the other; ties are no pairs."""
        group = np.repeat(np.arange(len(self.groups) - 1), np.diff(self.groups))
        is_above = self.scores[:, None] > self.scores[None, :]
        better, worse = np.nonzero(is_above & (group[:, None] == group[None, :]))
        count = np.bincount(group[better], minlength=len(self.groups) - 1)
        return Pairs(better, worse, 1 / count[group[better]], int(np.count_nonzero(count)))


def with_every_token_an_input(document: Document) -> Document:
    """Add a token at the end, neither input nor target: all others become inputs."""
    return Document(
        np.append(document.tokens, np.int32(0)),
        np.append(document.supervised, np.False_),
        document.row,
    )


def _part(document: Document, start: int, end: int | None) -> Document:
    return Document(document.tokens[start:end], document.supervised[start:end], document.row)
