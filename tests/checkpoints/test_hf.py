import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from alignctl.checkpoints.formats import hf
from alignctl.checkpoints.formats.hf_files import INDEX, SINGLE
from alignctl.checkpoints.tensors.dtypes import FLOAT32
from alignctl.config.sections import Head, Model
from alignctl.errors import UserError
from tests.checkpoints.folders import (
    FAMILY_NAMES,
    Family,
    architecture,
    is_identical,
    made,
    random_weights,
    write_config,
    write_hf,
    write_single,
    write_weights,
)


def read(folder: Path) -> dict[str, Tensor]:
    return made(hf.read(folder).tensors)


def refusal(folder: Path) -> UserError:
    with pytest.raises(UserError) as error:
        made(hf.read(folder).tensors)
    return error.value


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 4096])
def test_what_is_written_is_read_in_one_file_or_in_many(
    family: Family, max_shard_bytes: int, tmp_path: Path
) -> None:
    model = architecture(family)
    weights = random_weights(model)
    write_hf(tmp_path, model, weights, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / SINGLE).exists() == (max_shard_bytes == 1 << 30)
    assert is_identical(read(tmp_path), weights)
    folder = hf.read(tmp_path)
    assert (folder.model, folder.head, folder.prefix) == (
        model,
        "lm",
        "transformer." if family == "bloom" else "model.",
    )
    assert hf.common_dtype(tmp_path, folder.tensors.values()) == FLOAT32


def test_shards_keep_their_limit_and_the_index_names_each_tensor_once(tmp_path: Path) -> None:
    """Tensors of 40 bytes, three to a shard of at most 127; the seventh is larger than a shard."""
    tensors = {f"t{i}": torch.arange(10.0) + i for i in range(6)} | {"big": torch.zeros(50)}
    write_weights(tmp_path, tensors, max_shard_bytes=127)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert {name: index["weight_map"][name] for name in ("t0", "t2", "t3", "big")} == {
        "t0": files[0],
        "t2": files[0],
        "t3": files[1],
        "big": files[2],
    }
    assert index["metadata"]["total_size"] == 6 * 40 + 200
    merged = {name: t for file in files for name, t in load_file(tmp_path / file).items()}
    assert is_identical(merged, tensors)


def test_a_slice_is_written_without_the_table_it_was_cut_from(tmp_path: Path) -> None:
    table = torch.randn(1000, 10)
    tensors = {"a": table[:1], "b": table[1:2], "c": table[:, 0]}
    write_weights(tmp_path, tensors, max_shard_bytes=1 << 20)
    assert is_identical(
        load_file(tmp_path / SINGLE), {n: t.contiguous() for n, t in tensors.items()}
    )
    assert (tmp_path / SINGLE).stat().st_size < 5000


def test_a_bloom_saved_without_its_head_is_read_under_the_full_names(tmp_path: Path) -> None:
    """The files of bigscience/bloom-* begin with "h.0", not with "transformer.h.0"."""
    model = architecture("bloom")
    weights = random_weights(model)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    write_hf(tmp_path, model, bare)
    assert hf.read(tmp_path).prefix == ""
    assert is_identical(read(tmp_path), weights)


@pytest.mark.parametrize(
    ("family", "buffer"),
    [
        ("llama2", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("bloom", "transformer.h.0.self_attention.masked_bias"),
        ("bloom", "transformer.h.1.self_attention.bias"),
    ],
)
def test_buffers_of_old_checkpoints_are_left_out(
    family: Family, buffer: str, tmp_path: Path
) -> None:
    model = architecture(family)
    weights = random_weights(model)
    write_hf(tmp_path, model, weights | {buffer: torch.ones(3, dtype=torch.int64)})
    assert is_identical(read(tmp_path), weights)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_tied_output_layer_may_be_stored_a_second_time(prefix: str, tmp_path: Path) -> None:
    model = architecture("bloom")
    weights = random_weights(model)
    stored = {prefix + name.removeprefix("transformer."): t for name, t in weights.items()}
    stored["lm_head.weight"] = weights["transformer.word_embeddings.weight"].clone()
    write_hf(tmp_path, model, stored)
    assert is_identical(read(tmp_path), weights)


@pytest.mark.parametrize("rows", [11, 12])
def test_a_tied_output_layer_that_differs_is_refused(rows: int, tmp_path: Path) -> None:
    model = architecture("bloom")
    weights = random_weights(model) | {"lm_head.weight": torch.zeros(rows, 16)}
    error = refusal(write_hf(tmp_path, model, weights))
    assert "lm_head.weight: differs" in error.message
    assert "tie_word_embeddings" in str(error.hint)


def test_a_missing_tensor_is_named_and_missing_ones_are_counted(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model)
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    error = refusal(write_hf(tmp_path, model, weights))
    assert error.message == (
        f"{tmp_path}: 2 of 21 tensors are missing, the first is 'model.layers.1.mlp.up_proj.weight'"
    )


def test_a_missing_embedding_is_missed_even_when_its_tied_copy_is_there(tmp_path: Path) -> None:
    model = architecture("bloom")
    weights = random_weights(model)
    weights["lm_head.weight"] = weights.pop("transformer.word_embeddings.weight")
    error = refusal(write_hf(tmp_path, model, weights))
    assert "the first is 'transformer.word_embeddings.weight'" in error.message


def test_a_tensor_of_another_model_is_refused(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model) | {"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(1)}
    error = refusal(write_hf(tmp_path, model, weights))
    assert "1 tensors do not belong to a llama2 model" in error.message
    assert "lora_A" in error.message
    assert "adapter" in str(error.hint)


def test_a_misshapen_tensor_is_refused_with_both_shapes(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model)
    weights["model.embed_tokens.weight"] = torch.zeros(12, 16)
    error = refusal(write_hf(tmp_path, model, weights))
    assert error.message == (
        f"{tmp_path / SINGLE}: model.embed_tokens.weight: shape [12, 16], "
        "but the model's config asks for [11, 16]"
    )


def test_a_quantised_tensor_is_refused_with_its_type(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    error = refusal(write_hf(tmp_path, model, weights))
    assert "model.norm.weight: its type is int8" in error.message
    assert "float32, bfloat16, float16" in str(error.hint)


def test_weights_of_several_types_have_no_type_to_keep(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model, torch.bfloat16)
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    tensors = hf.read(write_hf(tmp_path, model, weights)).tensors
    with pytest.raises(UserError, match=r"float32: .*model.norm.weight") as error:
        hf.common_dtype(tmp_path, tensors.values())
    assert "--dtype" in str(error.value.hint)


def sharded(folder: Path) -> dict[str, str]:
    """A folder in shards, and its index."""
    write_hf(folder, architecture("llama2"), max_shard_bytes=4096)
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("place", ["../other/model.safetensors", "/etc/hostname"])
def test_an_index_cannot_name_a_file_outside_the_folder(place: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    write_hf(tmp_path / "other", architecture("llama2"))
    write_index(tmp_path / "model", index | {"model.norm.weight": place})
    assert "lies outside the model folder" in refusal(tmp_path / "model").message


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    sharded(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    assert is_identical(read(snapshot), random_weights(architecture("llama2")))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = sorted(set(sharded(tmp_path).values()))[0]
    (tmp_path / first).unlink()
    assert refusal(tmp_path).message == f"{tmp_path / INDEX}: shard {first} is missing"


def test_a_tensor_that_is_not_where_the_index_places_it_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    name = "model.norm.weight"
    other = next(file for file in index.values() if file != index[name])
    write_index(tmp_path, index | {name: other})
    assert f"{name!r}, which {INDEX} places" in refusal(tmp_path).message


@pytest.mark.parametrize("content", ['{"weights": {}}', "[]", "{", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content)
    assert str(tmp_path / INDEX) in refusal(tmp_path).message


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476838744\n"


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 4096])
def test_a_git_lfs_pointer_is_recognised(max_shard_bytes: int, tmp_path: Path) -> None:
    write_hf(tmp_path, architecture("llama2"), max_shard_bytes=max_shard_bytes)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_text(POINTER)
    error = refusal(tmp_path)
    assert str(file) in error.message
    assert "git lfs pull" in str(error.hint)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 4096])
def test_a_truncated_file_is_refused_by_name(
    kept: int, max_shard_bytes: int, tmp_path: Path
) -> None:
    write_hf(tmp_path, architecture("bloom"), max_shard_bytes=max_shard_bytes)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:kept])
    error = refusal(tmp_path)
    assert error.message.startswith(f"{file}: not a readable safetensors file: ")


def test_a_folder_without_weights_lists_the_names_it_was_searched_for(tmp_path: Path) -> None:
    write_config(tmp_path, architecture("llama2"))
    message = refusal(tmp_path).message
    assert all(name in message for name in (INDEX, SINGLE, "pytorch_model.bin"))


def write_bin(folder: Path, model: Model, weights: Mapping[str, Tensor], *, shards: int) -> Path:
    """A folder as transformers wrote it before safetensors."""
    write_config(folder, model)
    if shards == 1:
        torch.save(dict(weights), folder / "pytorch_model.bin")
        return folder
    index: dict[str, str] = {}
    for number in range(shards):
        part = dict(list(weights.items())[number::shards])
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, folder / name)
        index |= dict.fromkeys(part, name)
    content = {"metadata": {}, "weight_map": index}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_in_torchs_own_format_are_read(family: Family, shards: int, tmp_path: Path) -> None:
    model = architecture(family)
    weights = random_weights(model, torch.bfloat16)
    assert is_identical(read(write_bin(tmp_path, model, weights, shards=shards)), weights)


def test_safetensors_are_preferred_to_torchs_own_format(tmp_path: Path) -> None:
    model = architecture("llama2")
    write_bin(tmp_path, model, random_weights(model, seed=1), shards=1)
    write_hf(tmp_path, model, random_weights(model, seed=2))
    assert is_identical(read(tmp_path), random_weights(model, seed=2))


def test_a_file_of_torchs_that_holds_more_than_weights_is_refused(tmp_path: Path) -> None:
    model = architecture("llama2")
    write_bin(tmp_path, model, random_weights(model), shards=1)
    torch.save({"model": random_weights(model), "epoch": 3}, tmp_path / "pytorch_model.bin")
    assert "'model' is no tensor" in refusal(tmp_path).message
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    assert "holds no weights by name, but a list" in refusal(tmp_path).message


@pytest.mark.parametrize("shards", [1, 2])
def test_a_damaged_file_of_torchs_is_refused_by_name(shards: int, tmp_path: Path) -> None:
    """A bit in the middle of the weights: the archive's own checksum tells."""
    model = architecture("bloom")
    write_bin(tmp_path, model, random_weights(model), shards=shards)
    file = sorted(tmp_path.glob("*.bin"))[-1]
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    file.write_bytes(content)
    assert "its checksum differs from the one in the file" in refusal(tmp_path).message
    file.write_bytes(content[: len(content) // 2])
    assert f"{file}: not a readable PyTorch file" in refusal(tmp_path).message
    file.write_text(POINTER)
    assert "git lfs pull" in str(refusal(tmp_path).hint)


HEADS: tuple[Head, ...] = ("lm", "linear", "pooler")


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("head", HEADS)
def test_the_head_is_found_by_its_tensors(family: Family, head: Head, tmp_path: Path) -> None:
    model = architecture(family)
    weights = random_weights(model, head=head)
    folder = hf.read(write_hf(tmp_path, model, weights))
    assert folder.head == head
    assert is_identical(made(folder.tensors), weights)


@pytest.mark.parametrize("prefix", ["rwtransformer.", "rwtranrsformer."])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_reward_models_of_deepspeed_chat_are_read(
    prefix: str, family: Family, tmp_path: Path
) -> None:
    """They wrap the bare model, once misspelt, and call the row that scores v_head."""
    model = architecture(family)
    weights = random_weights(model, head="linear")
    ours = "transformer." if family == "bloom" else "model."
    stored = {
        "v_head.weight" if name == "score.weight" else prefix + name.removeprefix(ours): tensor
        for name, tensor in weights.items()
    }
    folder = hf.read(write_bin(tmp_path, model, stored, shards=1))
    assert folder.head == "linear"
    assert is_identical(made(folder.tensors), weights)


def test_a_tensor_in_a_shard_where_the_index_does_not_place_it_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    name = "model.norm.weight"
    write_index(tmp_path, {key: place for key, place in index.items() if key != name})
    assert f"holds tensor {name!r}, which {INDEX} places nowhere" in refusal(tmp_path).message


def test_a_config_of_another_model_shows_in_the_tensors(tmp_path: Path) -> None:
    """The file has one layer more than config.json says."""
    model = architecture("llama2")
    shallow = model.model_copy(update={"num_layers": 1})
    error = refusal(write_single(tmp_path, shallow, random_weights(model)))
    assert "9 tensors do not belong to a llama2 model" in error.message


def test_of_several_sets_of_weights_the_one_that_transformers_takes_is_read(tmp_path: Path) -> None:
    """Saved as one file over a model in shards, which leaves the index and the shards behind."""
    model = architecture("llama2")
    sets = [random_weights(model, seed=seed) for seed in range(4)]
    write_hf(tmp_path, model, sets[0])
    (tmp_path / "old").mkdir()
    write_weights(tmp_path / "old", sets[1], max_shard_bytes=8192)
    for file in (tmp_path / "old").iterdir():
        file.rename(tmp_path / file.name)
    torch.save(sets[2], tmp_path / "pytorch_model.bin")
    torch.save(sets[3], tmp_path / "part.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(sets[3], "part.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    others = "model-00001-of-00003.safetensors to pytorch_model.bin.index.json (6 files)"
    for number, start in enumerate((SINGLE, INDEX, "pytorch_model.bin", None)):
        config = AutoConfig.from_pretrained(tmp_path)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, config=config).state_dict()
        assert is_identical(read(tmp_path), sets[number])
        assert is_identical({name: theirs[name] for name in sets[number]}, sets[number])
        if start == SINGLE:
            assert hf.read(tmp_path).files == f"{SINGLE}; not read: {others}"
        if start:
            (tmp_path / start).unlink()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.module.{name}",
        lambda name: name.replace(".layers.0.", ".layers.0._orig_mod."),
        lambda name: (
            "_fsdp_wrapped_module." + name.replace("mlp.", "mlp._checkpoint_wrapped_module.")
        ),
    ],
)
def test_what_wrappers_put_into_names_is_taken_off(
    wrap: Callable[[str], str], tmp_path: Path
) -> None:
    model = architecture("llama2")
    weights = random_weights(model)
    write_single(tmp_path, model, {wrap(name): tensor for name, tensor in weights.items()})
    assert is_identical(read(tmp_path), weights)
    assert hf.read(tmp_path).prefix == "model."


@pytest.mark.parametrize(
    "name",
    ["base_model.model.model.norm.weight", "model.layers.0.self_attn.q_proj.base_layer.weight"],
)
def test_names_of_peft_are_refused_as_that(name: str, tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model) | {name: torch.ones(1)}
    error = refusal(write_single(tmp_path, model, weights))
    assert f"{name!r} in it is a name of PEFT's" in error.message
    assert "merge_and_unload" in str(error.hint)


def test_names_that_are_none_of_ours_are_shown(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = {f"policy.{name}": tensor for name, tensor in random_weights(model).items()}
    error = refusal(write_single(tmp_path, model, weights))
    assert "21 of 21 tensors are missing" in error.message
    assert error.message.endswith("model.safetensors: policy.lm_head.weight")
    assert error.hint == "the names are those of another program, or the config is of another model"


def test_a_folder_of_other_weights_names_them(tmp_path: Path) -> None:
    write_config(tmp_path, architecture("llama2"))
    for name in ("model.fp16.safetensors", "llama.gguf", "training_args.bin"):
        (tmp_path / name).touch()
    error = refusal(tmp_path)
    assert "no weights beside config.json" in error.message
    assert "of another kind: llama.gguf to model.fp16.safetensors (2 files)" in error.message
