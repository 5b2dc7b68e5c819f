"""Batches as long as they can be, in the place of data: every position is learned from."""

import numpy as np

from alignctl.config.run import TrainingConfig
from alignctl.data.batch import Document, PreferenceBatch, TokenBatch

_TOKEN = 1


def training_batch(config: TrainingConfig) -> TokenBatch:
    """Make a micro batch of `sft`, `reward` or `dpo`; preferences are all of document number 0."""
    size, length = config.batch.micro_batch_size, config.batch.seq_length
    answers = config.answers_compared
    if answers == 1:
        return TokenBatch.from_documents([_document(length + 1)] * size)
    groups = [[_document(length)] * answers] * size
    return PreferenceBatch.from_groups(groups, np.arange(size * answers, dtype=np.float64))


def _document(length: int) -> Document:
    return Document(np.full(length, _TOKEN, np.int32), np.ones(length, np.bool_), 0)
