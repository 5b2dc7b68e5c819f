"""FlexAttention's mask and scores, beside the plain attention of the same pieces."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torchs

from alignctl.data.batch import Pieces
from alignctl.models import document_attention, flex_attention
from alignctl.models.document_attention import Alibi
from alignctl.models.flex_attention import FlexMask, attend, seen_blocks
from tests.models.test_attention import trees

BLOCK, WIDTH = 16, 8


@pytest.fixture(autouse=True)
def with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a backward pass on the CPU, by the device alone."""
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)


def filled(pieces: Pieces, block: int) -> Pieces:
    extra = -pieces.boundaries[-1] % block
    return pieces.with_filler(extra) if extra else pieces


def chain_of(pieces: Pieces) -> list[set[int]]:
    """The tokens of each token's document, as far as it goes, by the chains of pieces alone."""
    seen = []
    for chain in pieces.chains:
        above = {
            place
            for piece in chain[:-1]
            for place in range(pieces.boundaries[piece], pieces.boundaries[piece + 1])
        }
        start, end = pieces.boundaries[chain[-1]], pieces.boundaries[chain[-1] + 1]
        seen += [above | set(range(start, place + 1)) for place in range(start, end)]
    return seen


@given(pieces=trees(), block=st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None, max_examples=150)
def test_each_token_sees_its_documents_and_blocks_say_the_same(pieces: Pieces, block: int) -> None:
    """Every pair of tokens, and every block of them, from the chains of pieces."""
    pieces = filled(pieces, block)
    total = pieces.boundaries[-1]
    expected = np.zeros((total, total), np.bool_)
    for query, keys in enumerate(chain_of(pieces)):
        expected[query, list(keys)] = True
    mask = FlexMask.of(pieces, torch.from_numpy, block).blocks
    every = torch.arange(total)
    found = mask.mask_mod(torch.tensor(0), torch.tensor(0), every[:, None], every[None])
    assert np.array_equal(found.numpy(), expected)
    cut = expected.reshape(total // block, block, total // block, block)
    some, whole = seen_blocks(pieces, block)
    assert np.array_equal(some, cut.any(axis=(1, 3)))
    assert np.array_equal(whole, cut.all(axis=(1, 3)))
    assert np.array_equal(mask.to_dense()[0, 0].numpy() > 0, some)


@pytest.mark.parametrize("block", [16, 128])
def test_blocks_are_those_that_torch_finds_by_trying_every_pair(block: int) -> None:
    pieces = filled(Pieces((0, 40, 70, 96, 230, 300), (-1, 0, 0, -1, 1)), block)
    total = pieces.boundaries[-1]
    ours = FlexMask.of(pieces, torch.from_numpy, block).blocks
    theirs = torchs.create_block_mask(
        ours.mask_mod, None, None, total, total, device="cpu", BLOCK_SIZE=block
    )
    for name in ("kv", "full_kv", "q", "full_q"):
        count, places = (getattr(theirs, f"{name}_{what}") for what in ("num_blocks", "indices"))
        assert torch.equal(getattr(ours, f"{name}_num_blocks"), count)
        listed = torch.arange(places.shape[-1]) < count[..., None]
        assert torch.equal(getattr(ours, f"{name}_indices")[listed], places[listed])


@pytest.mark.parametrize(("heads", "groups", "alibi"), [(4, 2, False), (6, 6, True)])
@given(pieces=trees())
@settings(deadline=None, max_examples=12)
def test_outputs_and_gradients_are_those_of_plain_attention(
    heads: int, groups: int, alibi: bool, pieces: Pieces
) -> None:
    pieces = filled(pieces, BLOCK)
    generator = torch.Generator().manual_seed(7)
    total = pieces.boundaries[-1]
    query, key, value = qkv = [
        torch.randn(total, n, WIDTH, generator=generator).requires_grad_()
        for n in (heads, groups, groups)
    ]
    known = Alibi(2 * heads, heads) if alibi else None
    mask = FlexMask.of(pieces, torch.from_numpy, BLOCK)
    found = attend(query, key, value, mask, alibi=known)
    expected = document_attention.attend(query, key, value, pieces, alibi=known)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn(expected.shape, generator=generator)
    ours, plain = (torch.autograd.grad((out * weights).sum(), qkv) for out in (found, expected))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)


def compare(total: int, *, has_gradients: bool) -> None:
    """`attend` beside plain attention, on a micro batch of a length."""
    pieces = filled(Pieces((0, 40, 70, 96, total - 3), (-1, 0, 0, 1)), 128)
    generator = torch.Generator().manual_seed(total)
    query, key, value = qkv = [
        torch.randn(total, n, 16, generator=generator).requires_grad_(has_gradients)
        for n in (4, 2, 2)
    ]
    mask = FlexMask.of(pieces, torch.from_numpy)
    found = attend(query, key, value, mask, alibi=Alibi(4))
    expected = document_attention.attend(query, key, value, pieces, alibi=Alibi(4))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    if has_gradients:
        ours, plain = (torch.autograd.grad(out.square().sum(), qkv) for out in (found, expected))
        for mine, theirs in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.ci
def test_the_compiled_kernel_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's compiler for CPUs, which has no backward pass; blocks decide what it computes.

    As on a GPU it is chosen by where the queries are: the compiler itself is not to believe that.
    """
    made, compiled = [], flex_attention._compiled
    with monkeypatch.context() as until_asked:

        def compile_it() -> Any:
            until_asked.undo()
            made.append(compiled())
            return made[-1]

        monkeypatch.setattr(flex_attention, "_compiled", compile_it)
        until_asked.setattr(torch.Tensor, "is_cuda", True, raising=False)
        compare(384, has_gradients=False)
    assert len(made) == 1


@pytest.mark.ci
def test_two_compilations_serve_micro_batches_of_all_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One for the first length, one for all; traced as for a GPU, and computed uncompiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(flex_attention, "flex_attention", flex_attention._compiled.__wrapped__())
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for total in (128, 256, 640, 384):
        compare(total, has_gradients=True)
    assert graphs["unique_graphs"] - before == 2
