"""A micro batch of preferences that share their prompts, in the place of the longest one."""

from unittest import mock

import numpy as np

from alignctl.config.run import TrainingConfig
from alignctl.data.batch import Document, PreferenceBatch, TokenBatch
from alignctl.simulation import batches
from alignctl.simulation.rollout import different_answers


def training_batch(config: TrainingConfig) -> TokenBatch:
    """Two answers to each prompt, which is as long as three of them."""
    size, length = config.batch.micro_batch_size, config.batch.seq_length
    prompt = np.ones(length * 3 // 4, np.int32)
    group = [
        Document(np.concatenate([prompt, 1 + answer]), np.arange(length) >= len(prompt), 0)
        for answer in different_answers(2, length - len(prompt))
    ]
    batch = PreferenceBatch.from_groups(
        [group] * size, np.arange(size * 2, dtype=np.float64), share_prompts=True
    )
    assert batch.num_tokens < 0.7 * batch.num_document_tokens
    return batch


def in_its_place() -> "mock._patch[object]":
    """The time that steps are taken with it."""
    return mock.patch.object(batches, "training_batch", training_batch)
