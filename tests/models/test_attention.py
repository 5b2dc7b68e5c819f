import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from alignctl.config.kernels import Kernels
from alignctl.config.sections import Parallel
from alignctl.data.batch import Pieces
from alignctl.engines.megatron.engine import MegatronEngine
from alignctl.errors import UserError
from alignctl.models.attention import DocumentAttention, Documents
from alignctl.models.document_attention import Alibi, alibi_slopes
from alignctl.models.document_attention import attend as attend_pieces
from tests import tiny

BOUNDARIES = (0, 1, 6, 13, 17)
WIDTH = 8


class Rank:
    """One of two tensor-parallel ranks, as attention asks a process group for it."""

    def __init__(self, number: int) -> None:
        self.rank = lambda: number


def attention(heads: int, *, alibi: bool, rank: int = 0) -> DocumentAttention:
    config = TransformerConfig(
        num_layers=1, hidden_size=heads * WIDTH, num_attention_heads=heads, attention_dropout=0.0
    )
    return DocumentAttention(
        config,
        1,
        AttnMaskType.causal,
        "self",
        pg_collection=ProcessGroupCollection(tp=Rank(rank)),
        alibi=alibi,
    )


def attend(module: DocumentAttention, *qkv: torch.Tensor) -> torch.Tensor:
    documents = Documents.at(
        Pieces(BOUNDARIES), np.ones(BOUNDARIES[-1], np.bool_), torch.from_numpy
    )
    output: torch.Tensor = module(*qkv, None, packed_seq_params=documents)
    return output


def random_qkv(heads: int, groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(heads)
    return [
        torch.randn(BOUNDARIES[-1], n, WIDTH, generator=generator) for n in (heads, *2 * [groups])
    ]


def naive(qkv: Sequence[torch.Tensor], slopes: torch.Tensor) -> torch.Tensor:
    """Softmax attention, one document, head and query position at a time."""
    q, k, v = qkv
    output = torch.zeros_like(q)
    queries_per_group = q.shape[1] // k.shape[1]
    for start, end in pairwise(BOUNDARIES):
        for head in range(q.shape[1]):
            keys = k[start:end, head // queries_per_group]
            values = v[start:end, head // queries_per_group]
            for place in range(end - start):
                seen = keys[: place + 1]
                scores = seen @ q[start + place, head] / math.sqrt(WIDTH)
                scores += slopes[head] * torch.arange(place + 1)
                output[start + place, head] = scores.softmax(0) @ values[: place + 1]
    return output


@pytest.mark.parametrize(
    ("heads", "groups", "alibi"), [(4, 4, False), (6, 2, False), (4, 1, False), (6, 6, True)]
)
def test_it_is_causal_softmax_attention_in_each_document(
    heads: int, groups: int, alibi: bool
) -> None:
    qkv = random_qkv(heads, groups)
    slopes = alibi_slopes(heads) if alibi else torch.zeros(heads)
    found = attend(attention(heads, alibi=alibi), *qkv)
    torch.testing.assert_close(found, naive(qkv, slopes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alibi", [False, True])
def test_no_document_sees_another(alibi: bool) -> None:
    """The second of four documents changes: the others keep every bit, in both directions."""
    module = attention(4, alibi=alibi)
    qkv = [x.requires_grad_() for x in random_qkv(4, 4)]
    before = attend(module, *qkv)
    changed = [x.detach().clone() for x in qkv]
    for x in changed:
        x[1:6] += 100.0
    after = attend(module, *changed)
    outside = [0, *range(6, 17)]
    assert torch.equal(before[outside], after[outside])
    assert not torch.equal(before[1:6], after[1:6])
    for grad in torch.autograd.grad(before[1:6].sum(), qkv):
        assert not grad[outside].any()


def test_no_token_sees_a_later_one() -> None:
    module = attention(4, alibi=True)
    q, k, v = random_qkv(4, 4)
    before = attend(module, q, k, v)
    k[5] += 10.0
    v[5] -= 10.0
    assert torch.equal(attend(module, q, k, v)[:5], before[:5])


@pytest.mark.parametrize("heads", [4, 6, 12, 16, 112])
def test_slopes_are_those_of_transformers(heads: int) -> None:
    """Bloom 1b1 has 16 heads and 176b 112, which is not a power of two."""
    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), theirs, rtol=1e-6, atol=0)


def test_a_tensor_parallel_rank_takes_the_slopes_of_its_own_heads() -> None:
    qkv = random_qkv(6, 6)
    whole = attend(attention(6, alibi=True), *qkv)
    part = attend(attention(6, alibi=True, rank=1), *(x[:, 3:] for x in qkv))
    torch.testing.assert_close(part, whole[:, 3:])


def test_the_bias_follows_the_length_and_the_dtype() -> None:
    """It is kept between calls; a longer document or another dtype must not get the old one."""
    module = attention(4, alibi=True)
    q, k, v = random_qkv(4, 4)
    short = Documents.at(Pieces((0, 3)), np.ones(3, np.bool_), torch.from_numpy)
    module(q[:3], k[:3], v[:3], None, packed_seq_params=short)
    fresh = attend(attention(4, alibi=True), q, k, v)
    assert torch.equal(attend(module, q, k, v), fresh)
    brief = attend(module, q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert brief.dtype == torch.bfloat16
    torch.testing.assert_close(brief.float(), fresh, rtol=0.05, atol=0.05)


@st.composite
def trees(draw: st.DrawFn) -> Pieces:
    """Pieces of which some continue others, over several generations."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    parents = [draw(st.integers(-1, piece - 1)) for piece in range(len(lengths))]
    return Pieces((0, *accumulate(lengths)), tuple(parents))


@pytest.mark.parametrize(("heads", "groups", "alibi"), [(4, 2, False), (6, 6, True)])
@given(pieces=trees())
@settings(deadline=None, max_examples=40)
def test_what_continues_a_piece_attends_as_if_it_stood_there_alone(
    heads: int, groups: int, alibi: bool, pieces: Pieces
) -> None:
    """Outputs, and gradients of a loss over all documents: those of the copies add up."""
    generator = torch.Generator().manual_seed(7)
    total, places = pieces.boundaries[-1], torch.from_numpy(pieces.places)
    query, key, value = (
        torch.randn(total, n, WIDTH, generator=generator).requires_grad_()
        for n in (heads, groups, groups)
    )
    copies = tuple(part.detach()[places].requires_grad_() for part in (query, key, value))
    apart = Pieces((0, *accumulate(pieces.document_lengths)))
    known = Alibi(heads) if alibi else None
    together = attend_pieces(query, key, value, pieces, alibi=known)[places]
    expected = attend_pieces(copies[0], copies[1], copies[2], apart, alibi=known)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=generator)
    found = torch.autograd.grad((together * weights).sum(), (query, key, value))
    of_copies = torch.autograd.grad((expected * weights).sum(), copies)
    for whole, parts in zip(found, of_copies, strict=True):
        added = torch.zeros_like(whole).index_add(0, places, parts)
        torch.testing.assert_close(whole, added, rtol=1e-5, atol=1e-5)


def test_boundaries_are_hidden_from_the_rotation_and_given_to_kernels() -> None:
    """Megatron rotates by `cu_seqlens_q` where it is given, and asks the GPU for it each time."""
    documents = Documents.at(
        Pieces(BOUNDARIES), np.ones(BOUNDARIES[-1], np.bool_), torch.from_numpy
    )
    assert documents.cu_seqlens_q is None
    assert documents.positions.tolist() == [0, *range(5), *range(7), *range(4)]
    packed = documents.with_boundaries()
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == list(BOUNDARIES)
    assert packed.max_seqlen_q == 7
    assert packed.qkv_format == "thd"


def test_without_a_gpu_an_engine_refuses_transformer_engines_attention() -> None:
    """Not only the launcher: a benchmark, or a test, makes engines of its own."""
    rule = "kernels.attention transformer_engine: it computes on a GPU alone, and none can be seen"
    with pytest.raises(UserError, match=rule):
        MegatronEngine(
            tiny.architecture(),
            Parallel(),
            precision="fp32",
            seq_length=8,
            optimizer=None,
            kernels=Kernels(attention="transformer_engine"),
        )
