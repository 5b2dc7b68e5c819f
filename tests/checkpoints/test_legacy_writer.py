"""Megatron-LM's files by rank, from the description of the format: names, nesting, arguments."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.checkpoints.legacy_folders import contents, source_of, write_legacy


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Shapes of tensors, and what else is in a tree, by path."""
    found: dict[str, Any] = {}
    for key, branch in tree.items():
        if isinstance(branch, dict):
            found |= leaves(branch, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = tuple(branch.shape) if isinstance(branch, Tensor) else branch
    return found


LINEARS = (
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)


def test_a_llama_has_the_keys_and_shapes_that_megatrons_own_saver_writes(tmp_path: Path) -> None:
    """Two layers, hidden 16, four heads and two groups of 4, ffn 24, eleven tokens.

    At TP 2 and PP 2: a rank holds one layer; of the rows of queries, keys and values
    (4 + 2 x 2) x 4 = 32 it has 16, of gate and up 2 x 24 = 48 it has 24, of the vocabulary, padded
    to 256, it has 128.
    """
    release = write_legacy(source_of(tmp_path / "hf", "llama2"), tmp_path / "mg", tp=2, pp=2)
    layer = {
        "layers.0.input_norm.weight": (16,),
        "layers.0.self_attention.query_key_value.weight": (16, 16),
        "layers.0.self_attention.dense.weight": (16, 8),
        "layers.0.post_attention_norm.weight": (16,),
        "layers.0.mlp.dense_h_to_4h.weight": (24, 16),
        "layers.0.mlp.dense_4h_to_h.weight": (16, 12),
        **{f"layers.0.{linear}._extra_state": None for linear in LINEARS},
    }
    encoder = {f"language_model/encoder/{name}": shape for name, shape in layer.items()}
    first = {"language_model/embedding/word_embeddings/weight": (128, 16), **encoder}
    last = {
        **encoder,
        "language_model/encoder/final_norm.weight": (16,),
        "language_model/output_layer/weight": (128, 16),
        "language_model/output_layer/_extra_state": None,
    }
    ranks = contents(release)
    assert list(ranks) == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    for name, tree in ranks.items():
        assert set(tree) == {
            "args",
            "checkpoint_version",
            "iteration",
            "model",
            "num_floating_point_operations_so_far",
        }
        assert tree["checkpoint_version"] == 3.0
        assert leaves(tree["model"]) == (first if name.endswith("_000") else last)


def test_a_bloom_has_the_keys_of_the_megatron_it_was_made_for(tmp_path: Path) -> None:
    """One rank: PAI's names, the norm of the embedding beside its table, everything with a bias."""
    release = write_legacy(source_of(tmp_path / "hf", "bloom"), tmp_path / "mg", tp=1, pp=1)
    ((name, tree),) = contents(release).items()
    assert name == "mp_rank_00"
    shapes = {
        "input_layernorm": (16,),
        "self_attention.query_key_value": (48, 16),
        "self_attention.dense": (16, 16),
        "post_attention_layernorm": (16,),
        "mlp.dense_h_to_4h": (64, 16),
        "mlp.dense_4h_to_h": (16, 64),
    }
    encoder = {
        f"language_model/encoder/layers.{number}.{part}.{kind}": shape
        if kind == "weight"
        else shape[:1]
        for number in range(2)
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }
    assert leaves(tree["model"]) == encoder | {
        "language_model/embedding/word_embeddings/weight": (128, 16),
        "language_model/embedding/word_embeddings/norm.weight": (16,),
        "language_model/embedding/word_embeddings/norm.bias": (16,),
        "language_model/encoder/final_layernorm.weight": (16,),
        "language_model/encoder/final_layernorm.bias": (16,),
    }


def test_a_tied_embedding_is_on_the_last_stage_once_more(tmp_path: Path) -> None:
    """As Megatron-LM has it beside the language model, with several stages only."""
    release = write_legacy(source_of(tmp_path / "hf", "bloom"), tmp_path / "mg", tp=2, pp=2)
    ranks = contents(release)
    for rank in (0, 1):
        first, last = (ranks[f"mp_rank_0{rank}_00{stage}"]["model"] for stage in (0, 1))
        assert "word_embeddings_for_head" not in first
        assert torch.equal(
            last["word_embeddings_for_head"]["weight"],
            first["language_model"]["embedding"]["word_embeddings"]["weight"],
        )


def test_the_arguments_are_those_that_megatron_takes_from_a_checkpoint(tmp_path: Path) -> None:
    release = write_legacy(source_of(tmp_path / "hf", "llama2"), tmp_path / "mg", tp=2, pp=1)
    args = contents(release)["mp_rank_01"]["args"]
    assert isinstance(args, Namespace)
    expected = {
        "num_layers": 2,
        "hidden_size": 16,
        "ffn_hidden_size": 24,
        "seq_length": 64,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "group_query_attention": True,
        "kv_channels": 4,
        "max_position_embeddings": 64,
        "position_embedding_type": "rope",
        "rotary_base": 10000.0,
        "rotary_percent": 1.0,
        "add_position_embedding": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "swiglu": True,
        "untie_embeddings_and_output_weights": True,
        "apply_layernorm_1p": False,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-5,
        "tokenizer_type": "Llama2Tokenizer",
        "padded_vocab_size": 256,
        "apply_query_key_layer_scaling": False,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "params_dtype": torch.float32,
        "iteration": 0,
    }
    assert {key: getattr(args, key) for key in expected} == expected
