"""On one rank: values, gradients and sizes of what is computed a chunk at a time.

tests/parallel/test_chunked_logprobs.py has whole models at several layouts.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from alignctl.models.chunked_logprobs import chunked_logprobs
from alignctl.models.vocab_parallel import Softmax

WIDTH = 5


@pytest.fixture(scope="module", autouse=True)
def group(alone: dist.ProcessGroup) -> dist.ProcessGroup:
    return alone


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(values: Tensor) -> Any:
    """A weight that Megatron sums up gradients of."""
    weight: Any = torch.nn.Parameter(values.clone())
    weight.main_grad = torch.zeros_like(values)
    return weight


def ours(hidden: Tensor, weight: Any, targets: Tensor, size: int, **settings: Any) -> Any:
    assert dist.group.WORLD is not None
    softmax = Softmax(dist.group.WORLD, len(weight), **settings)
    return chunked_logprobs(hidden, weight, lambda rows: rows @ weight.t(), targets, softmax, size)


@given(
    st.integers(2, 9),
    st.integers(2, 30),
    st.integers(1, 8),
    st.floats(0.1, 5.0),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_values_and_gradients_are_those_of_torch_on_all_logits(
    rows: int, vocabulary: int, size: int, temperature: float, with_entropy: bool, seed: int
) -> None:
    """The weight's is in two places: of all chunks but the last in Megatron's buffer."""
    hidden = numbers(rows, WIDTH, seed=seed).requires_grad_()
    weight = parameter(numbers(vocabulary, WIDTH, seed=seed + 1))
    targets = torch.arange(rows) % vocabulary
    slopes = numbers(2, rows, seed=seed + 2)
    settings: dict[str, Any] = {"temperature": temperature, "with_entropy": with_entropy}
    logprobs, hits, *entropy = ours(hidden, weight, targets, size, **settings)
    total = slopes[0] @ logprobs + sum(slopes[1] @ each for each in entropy)
    total.backward()

    theirs = hidden.detach().clone().requires_grad_()
    table = weight.detach().clone().requires_grad_()
    whole = (theirs @ table.t() / temperature).log_softmax(1)
    chosen = whole.gather(1, targets[:, None])[:, 0]
    of_entropy = -(whole.exp() * whole).sum(1) if with_entropy else torch.zeros_like(chosen)
    (slopes[0] @ chosen + slopes[1] @ of_entropy).backward()

    assert torch.allclose(logprobs, chosen, rtol=1e-10, atol=1e-10)
    assert torch.equal(hits, whole.argmax(1) == targets)
    assert len(entropy) == with_entropy
    assert all(torch.allclose(each, of_entropy, rtol=1e-10, atol=1e-10) for each in entropy)
    assert hidden.grad is not None
    assert theirs.grad is not None
    assert table.grad is not None
    assert torch.allclose(hidden.grad, theirs.grad, rtol=1e-9, atol=1e-10)
    assert torch.allclose(weight.grad + weight.main_grad, table.grad, rtol=1e-9, atol=1e-10)


def test_the_gradient_agrees_with_finite_differences_beside_a_frozen_weight() -> None:
    weight, targets = numbers(7, WIDTH, seed=1), torch.tensor([6, 0, 3, 3, 1])

    def compute(hidden: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, _, entropy = ours(hidden, weight, targets, 2, temperature=0.7, with_entropy=True)
        return logprobs, entropy

    hidden = numbers(len(targets), WIDTH, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(compute, (hidden,))


class Sizes(TorchDispatchMode):
    """Remembers the rows of all tensors that have a column for each token."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.rows = vocabulary, set[int]()

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor) and each.dim() == 2 and each.shape[1] == self.vocabulary:
                self.rows.add(each.shape[0])
        return out


@pytest.mark.parametrize("is_learning", [True, False])
def test_logits_of_more_than_a_chunk_never_exist(is_learning: bool) -> None:
    """Seventeen rows, four at a time: four, and one at the end; WIDTH is the weight, transposed."""
    weight = parameter(numbers(31, WIDTH, seed=1))
    hidden = numbers(17, WIDTH, seed=2).requires_grad_()
    with Sizes(31) as sizes, torch.set_grad_enabled(is_learning):
        logprobs, _ = ours(hidden, weight, torch.arange(17), 4)
        if is_learning:
            logprobs.sum().backward()
    assert logprobs.requires_grad is is_learning
    assert sizes.rows - {WIDTH} == {4, 1}


def test_bf16_chunks_are_added_in_float32() -> None:
    """Each chunk's product is rounded to bf16, to which 1 + 2^-8 is 1; their sum keeps it."""
    weight: Any = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    weight.main_grad = torch.zeros(2, 1)
    # p is 1/2: the gradient of a row is half its hidden state, that of the other token less.
    hidden = torch.tensor([[2.0], [2**-7], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    logprobs, _ = ours(hidden, weight, torch.tensor([0, 0, 0]), 1)
    logprobs.sum().backward()
    assert weight.main_grad.tolist() == [[1 + 2**-8], [-1 - 2**-8]]
