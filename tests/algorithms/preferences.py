"""Batches of preferences of given shapes, and what an engine would compute for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

from alignctl.algorithms.loss import LossTerms, Output, Scores
from alignctl.data.batch import IGNORE, Document, PreferenceBatch


@dataclass(frozen=True)
class Answer:
    """An answer's place in the data, its tokens (EOS among them), its score; two prompt tokens."""

    row: int
    tokens: int
    score: float


Group = Sequence[Answer]

NOT_MOST_LIKELY = torch.zeros(0, dtype=torch.bool)


def numbered(*groups: Sequence[tuple[int, float]]) -> list[list[Answer]]:
    """Groups of (tokens, score), their rows counted from 0."""
    rows = iter(range(sum(map(len, groups))))
    return [[Answer(next(rows), tokens, score) for tokens, score in group] for group in groups]


def batch_of(groups: Sequence[Group]) -> PreferenceBatch:
    """The batch of some groups; token d belongs to row d, so that batches show it."""
    return PreferenceBatch.from_groups(
        [[_document(answer) for answer in group] for group in groups],
        np.asarray([answer.score for group in groups for answer in group], np.float64),
    )


def _document(answer: Answer) -> Document:
    length = 2 + answer.tokens
    return Document(np.full(length, answer.row, np.int32), np.arange(length) >= 2, answer.row)


def policy_output(batch: PreferenceBatch, logprobs: Sequence[Sequence[float]]) -> Output:
    """Log-probabilities of the answer tokens, by row, where the batch has them."""
    values = torch.zeros(batch.num_tokens, dtype=torch.float64)
    for document, row in enumerate(batch.rows):
        start, end = batch.pieces.boundaries[document : document + 2]
        learned = np.flatnonzero(batch.targets[start:end] != IGNORE) + start
        values[learned] = torch.tensor(logprobs[row], dtype=torch.float64)
    return Output(values.requires_grad_(), NOT_MOST_LIKELY)


def reward_output(batch: PreferenceBatch, scores: Sequence[float]) -> Scores:
    """The scores of the rows, where the batch has them."""
    chosen = [scores[row] for row in batch.rows]
    return Scores(torch.tensor(chosen, dtype=torch.float64, requires_grad=True))


def added(parts: Sequence[LossTerms]) -> dict[str, float]:
    """All numbers of the terms of several micro batches, summed as an engine sums them."""
    sums: dict[str, float] = {}
    for part in parts:
        values = {"total": part.total, "weight": part.weight, **part.metrics}
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return sums


@st.composite
def groups_and_split(draw: st.DrawFn) -> tuple[list[list[Answer]], list[list[list[Answer]]]]:
    """Groups with ties among them; and the same in another order, dealt to micro batches."""
    answer = st.tuples(st.integers(1, 4), st.sampled_from([-1.0, 0.0, 0.25, 3.0]))
    groups = numbered(
        *draw(st.lists(st.lists(answer, min_size=1, max_size=4), min_size=1, max_size=6))
    )
    shuffled = draw(st.permutations(groups))
    cuts = sorted(draw(st.lists(st.integers(0, len(groups)), max_size=3)))
    edges = [0, *cuts, len(groups)]
    return groups, [shuffled[a:b] for a, b in pairwise(edges)]
