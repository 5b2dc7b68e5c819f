"""Megatron-LM's files by rank as others wrote them over the years."""

import enum
import io
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignctl.checkpoints.comparison import compare
from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.find import find
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.source import Source
from alignctl.config.sections import Head
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES
from alignctl.run_folder import LATEST
from tests.checkpoints.folders import (
    Family,
    architecture,
    is_identical,
    made,
    write_hf,
)
from tests.checkpoints.legacy_folders import FILE, contents, foreign, save, source_of, write_legacy


def same(found: Source, source: Source) -> bool:
    assert found.head == source.head
    return compare(found.tensors, source.tensors).is_identical


@pytest.mark.parametrize("family", ["llama2", "bloom"])
@pytest.mark.parametrize("tracker", ["release", "7"])
def test_a_checkpoint_without_a_manifest_tells_its_architecture(
    family: Family, tracker: str, tmp_path: Path
) -> None:
    source, ranks = foreign(tmp_path, family, tp=2, pp=2)
    folder = tmp_path / "theirs"
    save(folder / ("release" if tracker == "release" else "iter_0000007"), ranks)
    (folder / LATEST).write_text(tracker)
    found = find(folder)
    assert same(found, source)
    assert found.model == source.model
    assert found.auxiliary is None
    assert "Megatron legacy, TP 2, PP 2, version 3" in found.description
    assert find(found.path).path == found.path  # the folder itself is taken as well


def test_the_padding_of_a_vocabulary_that_nobody_tells_is_told_by_a_preset(tmp_path: Path) -> None:
    """Megatron-LM itself keeps the padded size only; without a preset all rows are tokens."""
    source, ranks = foreign(tmp_path, "llama2")
    for tree in ranks.values():
        del tree["args"].orig_vocab_size
    folder = save(tmp_path / "theirs", ranks)
    assert find(folder).model.vocab_size == 128
    assert same(find(folder, expected=source.model), source)


@pytest.mark.parametrize(
    ("version", "stored"),
    [
        (None, lambda rows: rows.transpose(1, 0)),
        (0, lambda rows: rows.transpose(1, 0)),
        (1.0, lambda rows: rows.transpose(1, 2)),
        (2.0, lambda rows: rows),
    ],
)
def test_older_orders_of_queries_keys_and_values_are_brought_into_todays(
    version: float | None, stored: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    """Today a rank has `[heads, 3, size]`; version 0 `[3, heads, size]`, 1 `[heads, size, 3]`."""
    source, ranks = foreign(tmp_path, "bloom", tp=2)
    for tree in ranks.values():
        encoder = tree["model"]["language_model"]["encoder"]
        for name in [name for name in encoder if "query_key_value" in name]:
            rows = encoder[name]
            heads = rows.reshape(2, 3, 4, *rows.shape[1:])
            encoder[name] = stored(heads).reshape(rows.shape).contiguous()
        if version is None:
            del tree["checkpoint_version"]
        else:
            tree["checkpoint_version"] = version
    assert same(find(save(tmp_path / "theirs", ranks)), source)


def test_the_names_of_older_megatrons_are_read(tmp_path: Path) -> None:
    """Of v1 and v2: `transformer` for the encoder, `attention` for the self-attention."""
    source, ranks = foreign(tmp_path, "bloom")
    for tree in ranks.values():
        language_model = tree["model"]["language_model"]
        encoder = language_model.pop("encoder")
        language_model["transformer"] = {
            name.replace("self_attention", "attention"): tensor for name, tensor in encoder.items()
        }
        del tree["args"].orig_vocab_size
        tree["args"].model_parallel_size = tree["args"].__dict__.pop("tensor_model_parallel_size")
    assert same(find(save(tmp_path / "theirs", ranks), expected=source.model), source)


def test_virtual_pipeline_stages_are_put_in_order(tmp_path: Path) -> None:
    """Eight layers on two ranks of two parts each: layers 0 1 and 4 5, then 2 3 and 6 7."""
    model = architecture("llama2").model_copy(update={"num_layers": 8})
    write_hf(tmp_path / "hf", model)
    source = find(tmp_path / "hf")
    whole = contents(write_legacy(source, tmp_path / "ours", tp=1, pp=4))
    parts = [whole[f"mp_rank_00_00{number}"]["model"] for number in range(4)]
    ranks = {}
    for stage in (0, 1):
        tree = {key: value for key, value in whole["mp_rank_00_000"].items() if key != "model"}
        tree["args"] = Namespace(**vars(tree["args"]) | {"pipeline_model_parallel_size": 2})
        ranks[f"mp_rank_00_00{stage}"] = tree | {"model0": parts[stage], "model1": parts[stage + 2]}
    assert same(find(save(tmp_path / "theirs", ranks)), source)


@pytest.mark.parametrize("is_nested", [False, True])
def test_pais_bloom_is_read_as_its_converter_and_its_trainer_write_it(
    is_nested: bool, tmp_path: Path
) -> None:
    """Flat keys, a copy for the head at one stage too, few arguments, another file name.

    Its table is padded by its last row again and again, which is no token and goes.
    """
    source, ranks = foreign(tmp_path, "bloom", tp=2)
    for tree in ranks.values():
        embedding = tree["model"]["language_model"]["embedding"]
        table = embedding["word_embeddings"]["weight"]
        tree["model"]["word_embeddings_for_head"] = {"weight": table.clone()}
        if not is_nested:
            flat = {f"word_embeddings.{k}": t for k, t in embedding["word_embeddings"].items()}
            tree["model"]["language_model"]["embedding"] = flat
        del tree["iteration"], tree["num_floating_point_operations_so_far"]
        kept = (
            *("hidden_size", "num_layers", "num_attention_heads", "ffn_hidden_size"),
            *("orig_vocab_size", "padded_vocab_size", "make_vocab_size_divisible_by"),
            *("tensor_model_parallel_size", "pipeline_model_parallel_size", "params_dtype"),
        )
        args = {key: value for key, value in vars(tree["args"]).items() if key in kept}
        tree["args"] = SimpleNamespace(**args, max_position_embeddings=1024, rank=0)
    folder = save(tmp_path / "theirs" / "release", ranks, file="model_rng.pt")
    assert same(find(folder), source)


@pytest.mark.parametrize("kind", ["rw_train", "rw_pred"])
def test_pais_folders_for_ppo_need_no_preparation(kind: str, tmp_path: Path) -> None:
    """For training each rank is there twice, with a copy in place of an optimizer."""
    source, ranks = foreign(tmp_path, "bloom", tp=2, head="linear")
    folder = tmp_path / kind / "release"
    if kind == "rw_pred":
        save(folder, ranks)
    else:
        for suffix in ("", "_000"):
            named = {f"{name}{suffix}": tree for name, tree in ranks.items()}
            save(folder, named, file="model_rng.pt")
            save(folder, named, file="optim.pt")
    (tmp_path / kind / LATEST).write_text("release")
    assert same(find(tmp_path / kind), source)


def test_the_row_that_scores_has_pais_place(tmp_path: Path) -> None:
    """Beside the language model, whole on every rank of the last stage, without a bias."""
    source, ranks = foreign(tmp_path, "bloom", tp=2, pp=2, head="linear")
    for rank in (0, 1):
        row = ranks[f"mp_rank_0{rank}_001"]["model"]["word_embeddings_for_head"]["weight"]
        assert torch.equal(row, source.tensors["score.weight"].make())
        assert "word_embeddings_for_head" not in ranks[f"mp_rank_0{rank}_000"]["model"]


@pytest.mark.parametrize("has_output", [False, True])
def test_chatlearns_two_layer_head_is_read_with_and_without_an_unused_output_layer(
    has_output: bool, tmp_path: Path
) -> None:
    source, ranks = foreign(tmp_path, "llama2", tp=2, pp=2, head="pooler")
    for name, tree in ranks.items():
        if name.endswith("_001"):
            head = tree["model"]["pooler_head"]
            assert set(head) == {f"dense{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
            assert tuple(head["dense1.weight"].shape) == (16, 16)
            if has_output:
                unused = {"weight": torch.randn(128, 16), "_extra_state": None}
                tree["model"]["language_model"]["output_layer"] = unused
    assert same(find(save(tmp_path / "theirs", ranks)), source)


CORE = {
    "input_norm.": "self_attention.linear_qkv.layer_norm_",
    "post_attention_norm.": "mlp.linear_fc1.layer_norm_",
    "self_attention.query_key_value.": "self_attention.linear_qkv.",
    "self_attention.dense.": "self_attention.linear_proj.",
    "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
    "final_norm.": "final_layernorm.",
}


@pytest.mark.parametrize("head", ["lm", "pooler"])
def test_megatron_cores_names_in_files_by_rank_are_read(head: Head, tmp_path: Path) -> None:
    """As core_r0.8.0 wrote them: one flat dict, Transformer Engine's names of norms, extra states.

    ChatLearn's reward model has its head there twice, flat and nested.
    """
    source, ranks = foreign(tmp_path, "llama2", tp=2, pp=2, head=head)
    for tree in ranks.values():
        flat: dict[str, Any] = {}
        model = tree["model"]
        for name, tensor in model["language_model"]["encoder"].items():
            for old, new in CORE.items():
                name = name.replace(old, new)
            flat[f"decoder.{name}"] = tensor
        for part, name in (
            ("embedding", "embedding.word_embeddings"),
            ("output_layer", "output_layer"),
        ):
            if part in model["language_model"]:
                table = model["language_model"][part]
                flat[f"{name}.weight"] = table.get("word_embeddings", table)["weight"]
        if "pooler_head" in model:
            flat |= {f"pooler_head.{key}": tensor for key, tensor in model["pooler_head"].items()}
            flat["pooler_head"] = model["pooler_head"]
        tree["model"] = flat
    found = find(save(tmp_path / "theirs", ranks))
    assert "Megatron Core by rank, TP 2, PP 2" in found.description
    assert same(found, source)


def _extra_states() -> dict[str, Any]:
    """Of Transformer Engine 1, 2, and of layers without it."""
    return {
        "decoder.layers.0.self_attention.linear_qkv._extra_state": io.BytesIO(
            b"a pickle of its own"
        ),
        "decoder.layers.0.mlp.linear_fc1._extra_state": torch.zeros(7, dtype=torch.uint8),
        "decoder.layers.0.mlp.linear_fc2._extra_state": None,
    }


@pytest.mark.parametrize("is_oldest", [False, True])
def test_what_transformer_engine_keeps_beside_weights_is_neither_kept_nor_run(
    is_oldest: bool, tmp_path: Path
) -> None:
    source, ranks = foreign(tmp_path, "llama2", tp=2)
    for tree in ranks.values():
        tree["model"] |= _extra_states()
    folder = save(tmp_path / "theirs", ranks)
    if is_oldest:
        for file in folder.rglob("*.pt"):
            tree = torch.load(file, weights_only=False)
            torch.save(tree, file, _use_new_zipfile_serialization=False)
    assert same(find(folder), source)
    (state,) = [
        value
        for name, value in torch_file.read(next(folder.rglob("*.pt")))["model"].items()
        if name.endswith("linear_qkv._extra_state")
    ]
    assert vars(state) == {}


def test_settings_of_megatrons_own_kinds_in_the_arguments_are_not_run(tmp_path: Path) -> None:
    """Enums of a version that is not installed, and of one that is not known."""
    source, ranks = foreign(tmp_path, "llama2")
    module = ModuleType("megatron.core.some_later_version")
    Scope = enum.Enum("Scope", {"FULL": 1}, module=module.__name__)
    setattr(module, "Scope", Scope)  # noqa: B010
    sys.modules[module.__name__] = module
    for tree in ranks.values():
        tree["args"].scope = list(Scope)
        tree["args"].exit_signal = signal.SIGTERM
    folder = save(tmp_path / "theirs", ranks)
    del sys.modules[module.__name__]
    assert same(find(folder), source)


def test_a_checkpoint_without_arguments_is_told_its_architecture_by_a_preset(
    tmp_path: Path,
) -> None:
    source, ranks = foreign(tmp_path, "llama2", tp=2, pp=2)
    for tree in ranks.values():
        del tree["args"]
    folder = save(tmp_path / "theirs", ranks)
    with pytest.raises(UserError, match="no `args` in it") as error:
        find(folder)
    assert error.value.hint == "tell it with --preset FILE, the preset of this model"
    found = find(folder, expected=source.model)
    assert found.model == source.model
    assert same(found, source)


def test_names_from_within_a_wrapper_are_read(tmp_path: Path) -> None:
    source, ranks = foreign(tmp_path, "llama2")
    for tree in ranks.values():
        tree["model"] = {"module": tree["model"]}
    assert same(find(save(tmp_path / "theirs", ranks)), source)


def test_a_tied_output_layer_of_megatron_core_is_a_copy(tmp_path: Path) -> None:
    """It has the name of an output layer of its own; only the arguments tell."""
    source = source_of(tmp_path / "hf", "llama2", tie=True)
    ranks = contents(write_legacy(source, tmp_path / "ours", tp=1, pp=2))
    copy = ranks["mp_rank_00_001"]["model"].pop("word_embeddings_for_head")
    ranks["mp_rank_00_001"]["model"]["language_model"]["output_layer"] = copy
    found = find(save(tmp_path / "theirs", ranks))
    assert found.model.tie_embeddings
    assert same(found, source)
    copy["weight"][3, 5] += 1
    with pytest.raises(UserError, match="differs from the embedding"):
        made(find(save(tmp_path / "mixed", ranks)).tensors)


def test_views_of_larger_tensors_are_read_as_what_they_show(tmp_path: Path) -> None:
    """PAI saves each rank's shard together with the whole tensor it was cut from."""
    source, ranks = foreign(tmp_path, "bloom", tp=2)
    for name, tree in ranks.items():
        encoder = tree["model"]["language_model"]["encoder"]
        for key, tensor in encoder.items():
            twice = torch.cat([tensor, tensor] if name == "mp_rank_00" else [-tensor, tensor])
            begin = 0 if name == "mp_rank_00" else len(tensor)
            encoder[key] = twice[begin : begin + len(tensor)]
    assert same(find(save(tmp_path / "theirs", ranks)), source)


def test_a_missing_rank_is_named_although_the_tracker_says_complete(tmp_path: Path) -> None:
    _, ranks = foreign(tmp_path, "llama2", tp=2, pp=2)
    folder = save(tmp_path / "theirs", ranks)
    shutil.rmtree(folder / "mp_rank_01_000")
    with pytest.raises(UserError, match=r"mp_rank_01_000 is missing; there are 3 of 2 x 2 ranks"):
        find(folder)
    shutil.rmtree(folder / "mp_rank_01_001")
    with pytest.raises(
        UserError, match=r"tensor_model_parallel_size 2, but there are folders for 1"
    ):
        find(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": 8}, "num_experts = 8 in its arguments is not part of a family of ours"),
        ({"apply_layernorm_1p": True}, "apply_layernorm_1p = True"),
        ({"rotary_interleaved": True}, "rotary_interleaved = True"),
        (
            {"hidden_size": 24},
            "word_embeddings.weight: shape [11, 16], but the model's config",
        ),
        ({"kv_channels": 6}, "do not fit 4 heads of 6"),
        ({"use_rope_scaling": True, "kv_channels": 6}, "with scaled rotary positions, with heads"),
        ({"qk_layernorm": True}, "qk_layernorm = True in its arguments is not part of a family"),
        ({"add_qkv_bias": True}, "add_qkv_bias = True in its arguments is not part of a family"),
        ({"num_layers": 3}, "num_layers = 3 in its arguments are not 2 pipeline stages"),
        ({"num_layers": "two"}, "num_layers = 'two'"),
        (
            {"orig_vocab_size": 999},
            "a vocabulary of 999 tokens does not fit an embedding of 256 rows",
        ),
    ],
)
def test_arguments_that_contradict_the_weights_or_our_families_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    _, ranks = foreign(tmp_path, "llama2", tp=2, pp=2)
    for tree in ranks.values():
        tree["args"] = Namespace(**vars(tree["args"]) | change)
    with pytest.raises(UserError) as error:
        find(save(tmp_path / "theirs", ranks))
    assert words in error.value.message


def test_a_gpt_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Biases, and no norm after the embedding: GPT-2."""
    _, ranks = foreign(tmp_path, "bloom")
    table = ranks["mp_rank_00"]["model"]["language_model"]["embedding"]["word_embeddings"]
    del table["norm.weight"], table["norm.bias"]
    with pytest.raises(UserError, match=r"like Bloom, but without embedding\.layernorm\.bias, w"):
        find(save(tmp_path / "theirs", ranks))


def test_learned_positions_are_refused(tmp_path: Path) -> None:
    _, ranks = foreign(tmp_path, "llama2")
    embedding = ranks["mp_rank_00"]["model"]["language_model"]["embedding"]
    embedding["position_embeddings"] = {"weight": torch.zeros(64, 16)}
    with pytest.raises(UserError, match=r"embedding\.position_embeddings\.weight"):
        find(save(tmp_path / "theirs", ranks))


def test_what_comes_back_has_a_config_made_from_the_arguments(tmp_path: Path) -> None:
    source, ranks = foreign(tmp_path, "llama2")
    found = find(save(tmp_path / "theirs", ranks))
    (tmp_path / "back").mkdir()
    convert(found, tmp_path / "back", Target("hf"))
    again = find(tmp_path / "back")
    assert again.model == source.model
    assert is_identical(made(again.tensors), made(source.tensors))
    assert found.hf_config == FAMILIES["llama2"].to_hf(source.model)


def test_a_model_without_a_tokenizer_asks_for_one(tmp_path: Path) -> None:
    _, ranks = foreign(tmp_path, "llama2")
    found = find(save(tmp_path / "theirs", ranks))
    with pytest.raises(UserError, match="no tokenizer files beside this checkpoint") as error:
        found.tokenizer_folder(None)
    assert "--tokenizer" in str(error.value.hint)
    assert found.tokenizer_folder(tmp_path) == tmp_path


def _swap(folder: Path, first: str, second: str) -> None:
    paths = [next((folder / f"mp_rank_{name}").glob("*.pt")) for name in (first, second)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)


@pytest.mark.parametrize("is_mapped_otherwise", [False, True])
def test_files_of_exchanged_ranks_are_found_by_what_their_arguments_say(
    is_mapped_otherwise: bool, tmp_path: Path
) -> None:
    """TP 2, PP 2, DP 3: 12 ranks. Of the first replica, stage 1 is ranks 6 and 7, or 2 and 3."""
    source, ranks = foreign(tmp_path, "llama2", tp=2, pp=2)
    for tp in (0, 1):
        for pp in (0, 1):
            args = ranks[f"mp_rank_0{tp}_00{pp}"]["args"]
            args.rank = tp + pp * (2 if is_mapped_otherwise else 6)
            args.world_size, args.use_tp_pp_dp_mapping = 12, is_mapped_otherwise
    found = find(save(tmp_path / "theirs", ranks))
    assert same(found, source)
    assert found.unchecked is None
    _swap(tmp_path / "theirs", "00_001", "01_001")
    rank = 3 if is_mapped_otherwise else 7
    with pytest.raises(UserError) as error:
        find(tmp_path / "theirs")
    assert error.value.message.endswith(
        f"mp_rank_00_001/{FILE}: written by rank {rank} of 12, which is mp_rank_01_001"
    )


def test_exchanged_shards_are_found_by_their_place_in_what_they_were_cut_from(
    tmp_path: Path,
) -> None:
    """PAI saves each rank's shard together with the whole tensor: a view of its first half."""
    source, ranks = foreign(tmp_path, "bloom", tp=2)
    for number, tree in enumerate(ranks.values()):
        encoder = tree["model"]["language_model"]["encoder"]
        tensor = encoder["layers.0.self_attention.query_key_value.weight"]
        whole = torch.cat([tensor, tensor])
        encoder["layers.0.self_attention.query_key_value.weight"] = whole.chunk(2)[number]
    found = find(save(tmp_path / "theirs", ranks))
    assert same(found, source)
    assert found.unchecked is None
    _swap(tmp_path / "theirs", "00", "01")
    words = "mp_rank_00/.*: its shards are part 1 of 2 of the whole, which mp_rank_01 should hold"
    with pytest.raises(UserError, match=words):
        find(tmp_path / "theirs")


@pytest.mark.parametrize("told", [0, None])
def test_what_nothing_tells_of_ranks_is_said(told: int | None, tmp_path: Path) -> None:
    """A converter writes all files in one process; PAI's says rank 0 in each of them."""
    _, ranks = foreign(tmp_path, "llama2", tp=2)
    for tree in ranks.values():
        tree["args"].rank = told
    found = find(save(tmp_path / "theirs", ranks))
    assert found.unchecked is not None
    assert "nothing in these 2 files says which rank wrote them" in found.unchecked
    _, ranks = foreign(tmp_path / "one", "llama2")
    assert find(save(tmp_path / "alone", ranks)).unchecked is None


def test_two_files_of_one_rank_have_to_be_the_same(tmp_path: Path) -> None:
    """PAI's preparation for PPO copies mp_rank_00 to mp_rank_00_000."""
    source, ranks = foreign(tmp_path, "llama2")
    folder = save(tmp_path / "theirs", ranks)
    shutil.copytree(folder / "mp_rank_00", folder / "mp_rank_00_000")
    assert same(find(folder), source)
    ranks["mp_rank_00"]["model"]["language_model"]["encoder"]["final_norm.weight"] *= 2
    save(folder, {"mp_rank_00_000": ranks["mp_rank_00"]})
    with pytest.raises(UserError, match="both are of one rank, and differ"):
        find(folder)
