"""Hugging Face to Megatron and back through the stages themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignctl.checkpoints import manifest
from alignctl.checkpoints.formats.hf_files import INDEX, SINGLE
from alignctl.checkpoints.manifest import HF_FOLDER
from alignctl.config.convert import ConvertOptions
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.stages import convert
from tests.checkpoints.folders import (
    FAMILY_NAMES,
    Family,
    architecture,
    is_identical,
    random_weights,
    write_config,
    write_hf,
    write_single,
)

TOKENIZER = {"tokenizer.json": '{"any":  "text"}\n', "tokenizer_config.json": "{}", "README.md": ""}


def given(load: Path, save: Path, options: dict[str, Any]) -> ConvertOptions:
    """Without verification, which has tests of its own."""
    flags = {"load": load, "save": save, "verify": "none", **options}
    return ConvertOptions.model_validate(flags)


def to_megatron(load: Path, save: Path, **options: Any) -> Path:
    convert.run("hf2mg", given(load, save, options))
    return save


def to_hf(load: Path, save: Path, **options: Any) -> Path:
    convert.run("mg2hf", given(load, save, options))
    return save


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def original(
    folder: Path, family: Family, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A model with the files that travel with it."""
    model = architecture(family)
    write_single(folder, model, random_weights(model, dtype))
    write_config(folder, model, dtype=str(dtype).removeprefix("torch."), **changes)
    for name, text in TOKENIZER.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_round_trip_returns_every_bit(
    family: Family, dtype: torch.dtype, tp: int, tmp_path: Path
) -> None:
    """At TP 2 eleven tokens become 256 rows on the way."""
    hf = original(tmp_path / "hf", family, dtype)
    back = to_hf(to_megatron(hf, tmp_path / "mg", tp=tp), tmp_path / "back")
    assert is_identical(weights_of(back), weights_of(hf))
    for name in ("config.json", *TOKENIZER):
        assert (back / name).read_bytes() == (hf / name).read_bytes()
    names = {file.name for file in hf.iterdir()} | {manifest.NAME}
    assert {file.name for file in back.iterdir()} == names


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from alignctl import cli
sys.argv = ["alignctl", *sys.argv[1:], "--verify", "none"]
cli.main()
"""


@pytest.mark.parametrize("format", ["mcore", "legacy"])
def test_the_way_there_and_back_does_without_torch(format: str, tmp_path: Path) -> None:
    hf, mg, back = (tmp_path / name for name in ("hf", "mg", "back"))
    original(hf, "llama2", torch.bfloat16)
    there = ("convert-hf2mg", "--load", hf, "--save", mg, "--format", format, "--tp", "2")
    for command in (there, ("convert-mg2hf", "--load", mg, "--save", back)):
        subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, *map(str, command)], check=True)
    assert is_identical(weights_of(back), weights_of(hf))


def test_values_that_are_no_ordinary_numbers_keep_their_bits(tmp_path: Path) -> None:
    """A negative zero, the smallest and the largest number."""
    model = architecture("llama2")
    weights = random_weights(model)
    odd = torch.tensor([-0x80000000, 1, 0x7F7FFFFF, -1 - 0x00800000], dtype=torch.int32)
    weights["model.norm.weight"].view(torch.int32)[:4] = odd
    write_single(tmp_path / "hf", model, weights)
    back = to_hf(to_megatron(tmp_path / "hf", tmp_path / "mg"), tmp_path / "back")
    assert is_identical(weights_of(back), weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = architecture("llama2")
    weights = random_weights(model, dtype)
    weights["model.layers.1.mlp.down_proj.weight"][2, 1] = value
    write_single(tmp_path / "hf", model, weights)
    with pytest.raises(UserError, match="1 of 384 values are infinite or NaN") as error:
        to_megatron(tmp_path / "hf", tmp_path / "mg")
    assert "model.layers.1.mlp.down_proj.weight" in error.value.message
    assert not list(tmp_path.glob("*mg*"))


def test_a_bloom_returns_under_the_names_it_came_with(tmp_path: Path) -> None:
    """Without "transformer." as bigscience has it, in shards, and the tied copy left out."""
    model = architecture("bloom")
    bare = {n.removeprefix("transformer."): t for n, t in random_weights(model).items()}
    copy = {"lm_head.weight": bare["word_embeddings.weight"].clone()}
    write_hf(tmp_path / "hf", model, bare | copy, max_shard_bytes=8192)
    assert (tmp_path / "hf" / INDEX).is_file()
    back = to_hf(to_megatron(tmp_path / "hf", tmp_path / "mg"), tmp_path / "back")
    assert is_identical(weights_of(back), bare)


@pytest.mark.parametrize("direction", ["hf2mg", "mg2hf"])
def test_another_dtype_shows_in_the_config(direction: str, tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "llama2", bos_token_id=1)
    there = {"dtype": "bf16"} if direction == "hf2mg" else {}
    back_again = {"dtype": "bf16"} if direction == "mg2hf" else {}
    mg = to_megatron(hf, tmp_path / "mg", **there)
    back = to_hf(mg, tmp_path / "back", **back_again)
    expected = {name: tensor.bfloat16() for name, tensor in weights_of(hf).items()}
    assert is_identical(weights_of(back), expected)
    before, after = (json.loads((f / "config.json").read_text()) for f in (hf, back))
    assert after == before | {"dtype": "bfloat16"}


def test_the_older_name_of_the_dtype_entry_is_kept(tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "llama2")
    config = json.loads((hf / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (hf / "config.json").write_text(json.dumps(config))
    back = to_hf(to_megatron(hf, tmp_path / "mg", dtype="fp16"), tmp_path / "back")
    after = json.loads((back / "config.json").read_text())
    assert after == config | {"torch_dtype": "float16"}


def test_mixed_dtypes_are_converted_only_when_one_is_chosen(tmp_path: Path) -> None:
    model = architecture("llama2")
    weights = random_weights(model, torch.bfloat16)
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    write_hf(tmp_path / "hf", model, weights)
    with pytest.raises(UserError, match="different types"):
        to_megatron(tmp_path / "hf", tmp_path / "mg")
    assert not list(tmp_path.glob("*mg*"))
    back = to_hf(to_megatron(tmp_path / "hf", tmp_path / "mg", dtype="fp32"), tmp_path / "back")
    assert is_identical(weights_of(back), {name: t.float() for name, t in weights.items()})


def test_a_damaged_checkpoint_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The byte lies in the middle of the weights: only the checksum can tell."""
    mg = to_megatron(original(tmp_path / "hf", "llama2"), tmp_path / "mg")
    (file,) = (mg / "release").glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="its checksum differs"):
        to_hf(mg, tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


def test_a_truncated_shard_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "llama2")
    (hf / SINGLE).write_bytes((hf / SINGLE).read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        to_megatron(hf, tmp_path / "mg")
    assert not list(tmp_path.glob("*mg*"))


def test_each_direction_names_the_other_when_given_its_own_kind(tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "bloom")
    mg = to_megatron(hf, tmp_path / "mg")
    with pytest.raises(UserError, match="Megatron checkpoint already") as error:
        to_megatron(mg, tmp_path / "again")
    assert "convert-mg2hf" in str(error.value.hint)
    with pytest.raises(UserError, match="Hugging Face folder already") as error:
        to_hf(hf, tmp_path / "again")
    assert "convert-hf2mg" in str(error.value.hint)


def test_a_preset_of_another_model_is_refused_with_the_differences(tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "llama2")
    other = architecture("llama2").model_copy(update={"num_layers": 32})
    with pytest.raises(UserError, match=r"num_layers: 32 != 2"):
        to_megatron(hf, tmp_path / "mg", model=other)


def test_a_layout_that_cannot_work_is_refused_with_the_numbers(tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "llama2")
    with pytest.raises(UserError) as error:
        to_megatron(hf, tmp_path / "mg", tp=4, pp=3)
    assert "model.num_query_groups 2 is not divisible by --tp 4" in error.value.message
    assert "model.num_layers 2 is not divisible by --pp 3" in error.value.message


def test_a_taken_target_keeps_what_is_in_it(tmp_path: Path) -> None:
    hf = original(tmp_path / "hf", "llama2")
    (tmp_path / "mg").mkdir()
    (tmp_path / "mg" / "precious").write_text("data")
    with pytest.raises(UserError, match="exists already"):
        to_megatron(hf, tmp_path / "mg")
    assert [file.name for file in (tmp_path / "mg").iterdir()] == ["precious"]


def test_the_vocabulary_is_padded_for_the_layout_that_is_named(tmp_path: Path) -> None:
    """vocab_divisor 4 x TP 2: eleven tokens, sixteen rows."""
    hf = original(tmp_path / "hf", "bloom")
    model = Model.model_validate({**architecture("bloom").model_dump(), "vocab_divisor": 4})
    mg = to_megatron(hf, tmp_path / "mg", tp=2, model=model)
    found = json.loads((mg / "release" / "alignctl.json").read_text())
    assert (found["padded_vocab_size"], found["dtype"]) == (16, "float32")
    assert (mg / "release" / HF_FOLDER / "tokenizer.json").is_file()


def test_what_comes_back_is_loaded_by_transformers(tmp_path: Path) -> None:
    """With every weight in place: none is reported as missing or new."""
    from transformers import AutoModelForCausalLM

    for family in FAMILY_NAMES:
        hf = original(tmp_path / family, family)
        back = to_hf(to_megatron(hf, tmp_path / f"{family}-mg"), tmp_path / f"{family}-back")
        loaded, info = AutoModelForCausalLM.from_pretrained(
            back, output_loading_info=True, dtype="auto"
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        state = loaded.state_dict()
        assert all(torch.equal(state[name], t) for name, t in weights_of(hf).items())


GENERATE = """
import gc, json, sys
from vllm import LLM, SamplingParams, TokensPrompt

prompts = [TokensPrompt(prompt_token_ids=ids) for ids in json.loads(sys.argv[1])]
sampling = SamplingParams(max_tokens=12, temperature=0.0, detokenize=False, ignore_eos=True)
for folder in sys.argv[2:]:
    llm = LLM(
        folder, skip_tokenizer_init=True, dtype="float32", max_model_len=64, enforce_eager=True
    )
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
    # It would take the next one's process groups with it.
    del llm
    gc.collect()
"""
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""One process, a cache of 1 GiB, and no claim to a core of its own."""


def spoken_by_vllm(folders: list[Path], prompts: list[list[int]]) -> list[list[list[int]]]:
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, json.dumps(prompts), *map(str, folders)],
        capture_output=True,
        text=True,
        env=os.environ | VLLM,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    return [json.loads(line.removeprefix("TOKENS ")) for line in lines]


def spoken_by_transformers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


@pytest.mark.slow
def test_what_comes_back_says_the_same_in_vllm_as_in_transformers(tmp_path: Path) -> None:
    """Greedy, twelve tokens after two prompts: grouped queries with RoPE, and ALiBi."""
    from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    # vLLM's attention on a CPU wants heads of 32. Without an end, all twelve tokens are said.
    shape = {"vocab_size": 509, "hidden_size": 128, "initializer_range": 0.2, "eos_token_id": None}
    models: list[Any] = [
        LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=160,
                max_position_embeddings=64,
                **shape,
            )
        ),
        BloomForCausalLM(BloomConfig(n_layer=2, n_head=4, **shape)),
    ]
    prompts = [[1, 17, 300, 42], [1, 508]]
    folders = []
    for number, model in enumerate(models):
        folder = tmp_path / str(number)
        model.eval().save_pretrained(folder / "hf")
        folders.append(to_hf(to_megatron(folder / "hf", folder / "mg", tp=2), folder / "back"))
    expected = [spoken_by_transformers(model, prompts) for model in models]
    assert all(len(tokens) == 12 for spoken in expected for tokens in spoken)
    assert spoken_by_vllm(folders, prompts) == expected
