"""The seeded documents of the jobs, and how they are grouped into micro batches."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignctl.config.sections import Optimizer
from alignctl.data.batch import Document, TokenBatch

VOCAB_SIZE = 509
VOCAB_DIVISOR = 2
"""509 tokens are padded to 510 rows at TP 1 and to 512 at TP 2."""
SEQ_LENGTH = 64

FOLLOW_STEPS = 20
FOLLOW_OPTIMIZER = Optimizer(
    lr=2e-3, min_lr=2e-4, warmup_steps=4, weight_decay=0.1, clip_grad=1.0, beta2=0.95
)
TRAIN_STEPS = 3
TRAIN_OPTIMIZER = Optimizer(lr=1e-3, weight_decay=0.1, clip_grad=1.0)

_BINS = ((0, 3, 5, 6), (1,), (2, 7), (4,))
"""Eight documents in bins of uneven size and number."""


def make(count: int, *, seed: int) -> list[Document]:
    """Documents of 3 to 41 tokens; a prompt of random length is not learned."""
    random = np.random.default_rng(seed)
    documents = []
    for row in range(count):
        length = int(random.integers(3, 42))
        tokens = random.integers(0, VOCAB_SIZE, size=length, dtype=np.int32)
        # The last token of the vocabulary, next to the padding, always takes part.
        tokens[-1] = VOCAB_SIZE - 1
        supervised = np.arange(length) >= random.integers(1, length)
        documents.append(Document(tokens, supervised, row))
    return documents


def of_step(step: int, *, count: int) -> list[Document]:
    """The documents of a training step; of the fifth nothing is learned."""
    documents = make(count, seed=100 + step)
    if count > 4:
        unlearned = documents[4]
        documents[4] = Document(unlearned.tokens, np.zeros_like(unlearned.supervised), 4)
    return documents


def of_evaluation() -> list[Document]:
    """Seven documents: no layout deals them evenly."""
    return make(7, seed=77)


def save(path: Path, documents: Sequence[Document]) -> None:
    """Writes documents as JSON."""
    rows = [[d.tokens.tolist(), d.supervised.tolist(), d.row] for d in documents]
    path.write_text(json.dumps(rows))


def load(path: Path) -> list[Document]:
    """The inverse of `save`."""
    return [
        Document(np.array(tokens, np.int32), np.array(supervised, np.bool_), row)
        for tokens, supervised, row in json.loads(path.read_text())
    ]


def grouped(documents: Sequence[Document], grouping: str) -> list[list[Document]]:
    """The documents of each micro batch of the whole step."""
    if grouping == "packed":
        bins = [[documents[i] for i in members if i < len(documents)] for members in _BINS]
        return [members for members in bins if members]
    size = int(grouping)
    return [list(documents[i : i + size]) for i in range(0, len(documents), size)]


def micro_batches(
    documents: Sequence[Document], grouping: str, *, dp_rank: int, dp_size: int
) -> list[TokenBatch]:
    """One rank's share; as many on every rank, fillers where it runs out."""
    groups = grouped(documents, grouping)
    most = -(-len(groups) // dp_size)
    mine = groups[dp_rank::dp_size]
    return [TokenBatch.from_documents(group) for group in mine + [[]] * (most - len(mine))]
