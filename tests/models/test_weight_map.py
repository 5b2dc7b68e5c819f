import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.sections import Model
from alignctl.models.families import weight_map
from alignctl.models.weight_map import (
    COLUMN,
    GATED_COLUMN,
    GROUPED_QKV,
    ROW,
    VOCABULARY,
    Vocabulary,
    Weight,
    expand,
    full_shape,
    hf_shapes,
    pad_rows,
)
from tests.models.strategies import models

SIZES = st.sampled_from([1, 2, 3])


def counted(shape: tuple[int, ...], start: int = 0) -> torch.Tensor:
    """No two elements are equal, so that a tensor says where each of them went."""
    return torch.arange(start, start + math.prod(shape)).reshape(shape)


@given(models())
def test_split_undoes_merge_for_every_weight(model: Model) -> None:
    rows = weight_map(model)
    shapes = hf_shapes(rows, model)
    for row in rows.values():
        parts = [counted(shapes[name], 10_000 * i) for i, name in enumerate(row.hf)]
        full = row.layout.merge(parts, model)
        assert full.shape == full_shape(row, model)
        back = row.layout.split(full, model)
        assert all(torch.equal(a, b) for a, b in zip(parts, back, strict=True))


@given(models())
def test_merge_undoes_split_for_every_weight(model: Model) -> None:
    for row in weight_map(model).values():
        full = counted(full_shape(row, model))
        assert torch.equal(row.layout.merge(row.layout.split(full, model), model), full)


@given(SIZES.flatmap(lambda tp: st.tuples(st.just(tp), models(tp=tp))))
def test_unshard_undoes_shard_for_every_weight(case: tuple[int, Model]) -> None:
    tp, model = case
    for row in weight_map(model).values():
        full = counted(full_shape(row, model))
        if isinstance(row.layout, Vocabulary):
            full = pad_rows(full, model.padded_vocab_size(tp))
        shards = [row.layout.shard(full, rank, tp) for rank in range(tp)]
        shape = row.layout.shard_shape(tuple(full.shape), tp)
        assert {tuple(shard.shape) for shard in shards} == {shape}
        assert row.layout.unshard_shape(shape, tp) == tuple(full.shape)
        assert torch.equal(row.layout.unshard(shards), full)


@given(SIZES.flatmap(lambda tp: st.tuples(st.just(tp), models(tp=tp))))
def test_the_vocabulary_loses_its_padding_on_the_way_back(case: tuple[int, Model]) -> None:
    tp, model = case
    table = counted((model.vocab_size, 3))
    padded = pad_rows(table, model.padded_vocab_size(tp))
    assert padded.shape[0] % (tp * model.vocab_divisor) == 0
    assert not padded[model.vocab_size :].any()
    (back,) = VOCABULARY.split(padded, model)
    assert torch.equal(back, table)


def grouped(groups: int, heads: int) -> Model:
    return Model(
        family="llama2",
        num_layers=1,
        hidden_size=2 * heads,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=4,
        vocab_size=4,
        max_position_embeddings=8,
        rotary_base=10000.0,
        tie_embeddings=False,
    )


def test_queries_keys_and_values_are_interleaved_by_group() -> None:
    """Four heads of width two in two groups. A row is named by its head and its place in it:
    query head 3 has rows 30 and 31, key head 1 has 110 and 111, value head 1 has 210 and 211."""
    query = torch.tensor([0, 1, 10, 11, 20, 21, 30, 31])
    key = torch.tensor([100, 101, 110, 111])
    value = torch.tensor([200, 201, 210, 211])
    full = GROUPED_QKV.merge([query, key, value], grouped(2, 4))
    first = [0, 1, 10, 11, 100, 101, 200, 201]
    second = [20, 21, 30, 31, 110, 111, 210, 211]
    assert full.tolist() == first + second
    assert GROUPED_QKV.shard(full, 0, 2).tolist() == first
    assert GROUPED_QKV.shard(full, 1, 2).tolist() == second


def test_a_gated_mlp_is_cut_in_each_half() -> None:
    full = GATED_COLUMN.merge(
        [torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11, 12, 13])], grouped(2, 4)
    )
    assert GATED_COLUMN.shard(full, 0, 2).tolist() == [0, 1, 10, 11]
    assert GATED_COLUMN.shard(full, 1, 2).tolist() == [2, 3, 12, 13]


def test_columns_cut_outputs_and_rows_cut_inputs() -> None:
    full = torch.tensor([[0, 1], [2, 3]])
    assert COLUMN.shard(full, 1, 2).tolist() == [[2, 3]]
    assert ROW.shard(full, 1, 2).tolist() == [[1], [3]]


def test_a_map_is_written_out_layer_by_layer() -> None:
    rows = (
        Weight("head", ("h",), COLUMN, "head"),
        Weight("a.{layer}", ("x.{layer}", "y.{layer}"), COLUMN, "layer"),
        Weight("table", ("t",), VOCABULARY, "embedding"),
    )
    expanded = expand(rows, 2)
    assert list(expanded) == ["table", "a.0", "a.1", "head"]
    assert expanded["a.1"].hf == ("x.1", "y.1")
