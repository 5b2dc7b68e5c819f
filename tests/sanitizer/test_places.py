"""What the sanitizer finds, and what it lets pass."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from alignctl.algorithms.copies import to_device
from tests.sanitizer.places import Operators, Places, make_mode


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    found = Places()
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    with make_mode(found)(), Operators(found):
        yield found


def make_weight() -> Tensor:
    return torch.randn(8, 4, device="cuda", requires_grad=True)


def test_a_batch_that_was_left_on_the_host_is_named_with_both_lines(places: Places) -> None:
    weight, batch = make_weight(), torch.randn(16, 4)
    _ = batch @ weight.T
    (mix,) = places.mixes
    assert mix.startswith("aten.mm.default at ")
    assert mix.count("test_places.py") == 3


def test_gradients_lie_where_their_weights_do(places: Places) -> None:
    weight, batch = make_weight(), torch.randn(16, 4)
    (batch.to("cuda") @ weight.T).square().mean().backward()
    assert weight.grad is not None
    assert places.is_gpu(weight.grad)
    assert not places.mixes
    assert [what for *_, what in places.waits] == [
        next(what for *_, what in places.waits if what.startswith("copy to the GPU at "))
    ]


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        (lambda weight: weight.sum().item(), "number to the host"),
        (lambda weight: weight.tolist(), "list to the host"),
        (lambda weight: weight.cpu(), "copy to the host"),
        (lambda weight: (weight > 0).nonzero(), "nonzero"),
        (lambda weight: weight[weight > 0], "boolean index"),
        (lambda weight: weight[torch.arange(4)], "index on the host"),
        (lambda weight: torch.tensor([1.0], device="cuda"), "copy gpu and host"),
        (lambda weight: bool(weight.isfinite().all()), "number to the host"),
        (lambda weight: weight.new_tensor([1.0]), "copy gpu and host"),
        (lambda weight: torch.equal(weight, weight + 1), "comparison"),
        (lambda weight: weight[:, 0].repeat_interleave(weight[:, 0].long() * 0), "repeats"),
        (lambda weight: torch.cuda.synchronize(), "synchronize"),
    ],
    ids=[
        *("item", "tolist", "cpu", "nonzero", "mask", "index", "tensor", "bool"),
        *("new_tensor", "equal", "repeat", "synchronize"),
    ],
)
def test_what_waits_for_the_gpu_is_counted(places: Places, deed: object, what: str) -> None:
    weight = make_weight().detach()
    assert callable(deed)
    deed(weight)
    assert what in {found.split(" at ")[0] for *_, found in places.waits}
    assert not places.mixes


def test_numbers_masks_with_one_value_and_queued_copies_do_not_wait(places: Places) -> None:
    weight = make_weight().detach()
    weight[weight > 0] = 0.0
    _ = weight * torch.tensor(2.0)
    _ = weight + torch.ones(4).to("cuda", non_blocking=True)
    _ = torch.zeros(4, device=weight.device) + weight
    _ = weight.new_full((), 3) + weight
    repeats = to_device(np.array([2, 3]), weight.device)
    assert weight[:2].repeat_interleave(repeats, dim=0, output_size=5).shape == (5, 4)
    assert places.is_gpu(repeats)
    assert not places.mixes
    assert not places.waits
