"""What micro batches need of a model, counted by hand, and of what GPUs can do."""

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from alignctl.data.batch import Document, TokenBatch
from alignctl.engines import flops
from tests import tiny

LAYERS = 2 * 2 * (128 * (256 + 128 + 3 * 160) + 2 * 128)
"""Of a token: two per weight of both layers. Queries of 4 heads of 32, keys and values of 2."""
ATTENTION = 2 * 2 * 128
"""Of a token and one that it attends to: two layers, two products of 128, half of them computed."""
LOGITS = 2 * 512 * 128


def batch(*lengths: int) -> TokenBatch:
    """Documents of so many inputs."""
    tokens = [np.arange(length + 1, dtype=np.int32) for length in lengths]
    return TokenBatch.from_documents(
        [Document(each, np.ones(len(each), np.bool_), row) for row, each in enumerate(tokens)]
    )


def count(*, has_logits: bool = False, is_whole: bool = True, is_learned: bool = False) -> float:
    return flops.count_batches(
        tiny.architecture(vocab_size=512),
        [batch(3, 5), batch(2)],
        has_logits=has_logits,
        is_whole=is_whole,
        is_learned=is_learned,
    )


def test_a_forward_pass_is_counted_once_and_an_update_three_times() -> None:
    """Ten tokens; attention of 9 + 25 + 4."""
    forward = 10 * LAYERS + 38 * ATTENTION
    assert count() == pytest.approx(forward) == 4_453_376
    assert count(has_logits=True) == pytest.approx(forward + 10 * LOGITS)
    assert count(is_learned=True) == pytest.approx(3 * forward)
    assert count(is_learned=True, is_whole=False) == pytest.approx(3 * forward - 10 * LAYERS)
    assert count(is_whole=False) == pytest.approx(forward)


def test_mfu_is_the_share_of_what_all_gpus_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6e12 operations in 2 s are 3e12 a second, of 4e12."""
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    monkeypatch.setattr(flops, "peak_flops", lambda: 4e12)
    try:
        assert flops.measure_use(6e12, 2.0, "bf16") == {"mfu": 0.75}
        assert flops.measure_use(6e12, 2.0, "fp32") == {}
        monkeypatch.setattr(flops, "peak_flops", lambda: None)
        assert flops.measure_use(6e12, 2.0, "bf16") == {}
    finally:
        dist.destroy_process_group()
