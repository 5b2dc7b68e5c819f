"""Checkpoints that DeepSpeed itself has written on two ranks, in one job for all cases.

Compared with what DeepSpeed's own zero_to_fp32 makes of them, and with the model in memory. (Not
with `safe_get_full_fp32_param`: under round_robin_gradients, what DeepSpeed 0.19.8 answers does not
round to the model's weights.) What two ranks cannot write is written by hand.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignctl.checkpoints import find
from alignctl.checkpoints.formats import zero
from alignctl.checkpoints.formats.zero import ZeroCheckpoint
from alignctl.checkpoints.formats.zero_files import LATEST
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.tensors.dtypes import BFLOAT16, FLOAT32
from alignctl.checkpoints.tensors.mapped_file import read_bytes
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.launch.job import Job, worker_environment
from tests.checkpoints.folders import (
    Family,
    architecture,
    is_identical,
    made,
    write_config,
    write_hf,
)

FAMILIES = ("llama2", "bloom")
"""DeepSpeed knows of none: two with other names and shapes are enough."""

ROOT = Path(__file__).parents[2]
TAG = "global_step2"
WORLD = 2


@dataclass(frozen=True)
class Case:
    """What DeepSpeed is told, and the model it trains."""

    family: Family
    stage: int
    precision: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_partly_frozen(self) -> bool:
        """Bloom's last norm and its first attention are not trained."""
        return self.family == "bloom"


def _cases() -> dict[str, Case]:
    cases = {
        f"{family}-{stage}-{precision}": Case(family, stage, precision)
        for family in FAMILIES
        for stage in (1, 2, 3)
        for precision in ("fp32", "bf16", "fp16")
    }
    for stage, option in (
        (1, "parameter_alignment"),  # every weight begins at a multiple of 16 bytes
        (2, "round_robin_gradients"),  # weights in another order than the model's
    ):
        cases[option] = Case("bloom", stage, "bf16", {option: True})
    # Flat tensors of at most so many elements: many of them.
    cases["sub_groups"] = Case("bloom", 3, "bf16", {"sub_group_size": 500})
    return cases


CASES = _cases()
OTHER_OPTIMIZER = Case("llama2", 1, "bf16", options={"data_types": {"grad_accum_dtype": "fp32"}})
"""Which DeepSpeed trains with its BF16_Optimizer, not with ZeRO's."""


def model_of(family: Family) -> Model:
    """Bloom with 15 columns: norms and embedding have odd sizes, which two ranks cannot halve."""
    if family == "llama2":
        return architecture(family)
    odd = {"hidden_size": 15, "ffn_hidden_size": 60}
    return architecture(family).model_copy(
        update=odd | {"num_attention_heads": 3, "num_query_groups": 3}
    )


# ---- what every rank runs ----


def main(folder: Path) -> None:
    """Trains and saves every case: its checkpoint, what DeepSpeed makes of it, and the truth."""
    import deepspeed
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator

    # Gloo suffices; DeepSpeed would compile an extension of its own for shared memory.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It trains in fp16 only where that is fast, which is of no interest here.
    type(get_accelerator()).is_fp16_supported = lambda self: True
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    for name, case in (CASES | {"other": OTHER_OPTIMIZER}).items():
        write_case(folder, name, case)
    dist.barrier()
    dist.destroy_process_group()


def write_case(folder: Path, name: str, case: Case) -> None:
    import deepspeed
    import torch.distributed as dist
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / case.family, dtype=torch.float32)
    model.register_buffer("positions", torch.arange(3))
    if case.is_partly_frozen:
        for part in (model.transformer.ln_f, model.transformer.h[0].self_attention):
            part.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": case.stage, **case.settings},
            "zero_allow_untested_optimizer": True,
            # A scale at which no step overflows and is skipped.
            "fp16": {"enabled": case.precision == "fp16", "initial_scale_power": 4},
            "bf16": {"enabled": case.precision == "bf16"},
            **case.options,
        },
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(2):
        tokens = torch.randint(11, (1, 8), generator=generator)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    target = folder / "cases" / name
    engine.save_checkpoint(target, tag=TAG)
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    if dist.get_rank() == 0:
        write_config(target, model_of(case.family))
        torch.save(weights, target / "weights.pt")
        if case is not OTHER_OPTIMIZER:
            torch.save(get_fp32_state_dict_from_zero_checkpoint(target), target / "theirs.pt")
    dist.barrier()


# ---- the tests ----


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all cases."""
    folder = tmp_path_factory.mktemp("zero")
    for family in FAMILIES:
        write_hf(folder / family, model_of(family))
    environment = os.environ | dict(worker_environment(WORLD, os.environ))
    job = Job("tests.checkpoints.test_zero", (str(folder),), nproc=WORLD, master_port=0)
    done = subprocess.run(
        job.command(),
        cwd=ROOT,
        env=environment | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "cases"


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A case's checkpoint, to be damaged."""
    return lambda case: Path(shutil.copytree(written / case, tmp_path / case))


def read(path: Path) -> ZeroCheckpoint:
    folder = zero.find(path)
    assert folder is not None
    return zero.read(folder)


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as error:
        made(read(path).tensors)
    return error.value


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_weight_has_the_bits_that_deepspeed_itself_recovers(name: str, written: Path) -> None:
    """Theirs are float32 but for frozen weights, which have the model's type and at stage 1 are
    left out. Of buffers, ours lack those that are not floating point.
    """
    case, checkpoint = CASES[name], read(written / name)
    theirs = torch.load(written / name / "theirs.pt")
    assert not theirs.pop("positions").is_floating_point()
    weights = torch.load(written / name / "weights.pt")
    frozen = set(weights) - set(theirs)
    assert bool(frozen) == (case.stage == 1 and case.is_partly_frozen)
    expected = theirs | {name: weights[name] for name in frozen}
    assert is_identical(made(checkpoint.tensors), {n: t.float() for n, t in expected.items()})
    assert (checkpoint.stage, checkpoint.num_ranks) == (case.stage, WORLD)
    is_shuffled = "round_robin_gradients" in case.settings  # among ranks, as nothing tells
    assert checkpoint.is_order_told == (case.stage < 3 and not is_shuffled)
    for tensor in checkpoint.tensors.values():
        assert tensor.make().shape == tensor.shape
        assert tensor.dtype == FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_rounded_to_its_precision_every_weight_is_that_of_the_trained_model(
    name: str, written: Path
) -> None:
    """And in bf16 and fp16 trained weights are not the rounded ones: they are finer."""
    case, tensors = CASES[name], made(read(written / name).tensors)
    weights = torch.load(written / name / "weights.pt")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[case.precision]
    if case.family == "bloom":
        weights["lm_head.weight"] = weights["transformer.word_embeddings.weight"]
        assert torch.equal(tensors["lm_head.weight"], tensors["transformer.word_embeddings.weight"])
    assert is_identical({name: tensor.to(dtype) for name, tensor in tensors.items()}, weights)
    finer = {
        name for name, each in tensors.items() if not torch.equal(each.to(dtype).float(), each)
    }
    is_trained = {n for n in weights if not case.is_partly_frozen or not _is_frozen(n)}
    assert finer == (set() if case.precision == "fp32" else is_trained)


def _is_frozen(name: str) -> bool:
    return name.startswith(("transformer.ln_f.", "transformer.h.0.self_attention."))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2-2-bf16", "bloom-1-fp16", "bloom-3-bf16", "sub_groups"])
def test_of_the_files_only_the_bytes_of_a_weight_are_read(
    name: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bytes for each trained element, two for each frozen one; none before `make`."""
    num_bytes: list[int] = []

    def count(file: Path, offset: int, size: int) -> NDArray[np.uint8]:
        num_bytes.append(size)
        return read_bytes(file, offset, size)

    monkeypatch.setattr(torch_file, "read_bytes", count)
    tensors = read(written / name).tensors
    assert not num_bytes
    for weight, tensor in tensors.items():
        tensor.make()
        width = 2 if CASES[name].is_partly_frozen and _is_frozen(weight) else 4
        assert sum(num_bytes) == tensor.numel * width
        num_bytes.clear()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_with_its_config_beside_it_a_checkpoint_is_a_model(
    family: Family, stage: int, written: Path
) -> None:
    folder = written / f"{family}-{stage}-bf16"
    found = find.find(folder)
    assert (found.kind, found.path, found.auxiliary) == ("zero", folder / TAG, folder)
    assert f"DeepSpeed ZeRO-{stage} of 2 ranks, {family}, 2 layers, float32" in found.description
    theirs = torch.load(folder / "theirs.pt")
    name = "model.embed_tokens" if family == "llama2" else "transformer.word_embeddings"
    embedding = found.tensors["embedding.word_embeddings.weight"].make()
    assert torch.equal(embedding, theirs[f"{name}.weight"])
    assert find.find(folder / TAG).path == folder / TAG


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("llama2-1-fp32", "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("llama2-2-bf16", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("llama2-2-bf16", "mp_rank_00_model_states.pt"),
        ("llama2-3-fp16", "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("llama2-3-bf16", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        ("llama2-3-bf16", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    ],
)
def test_a_rank_that_is_missing_is_named(case: str, file: str, copy: Callable[[str], Path]) -> None:
    folder = copy(case)
    (folder / TAG / file).unlink()
    error = refusal(folder)
    assert error.message.startswith(f"{folder / TAG}: {file} is missing")
    assert error.hint == "the checkpoint was not copied or written completely"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(
    "file",
    [
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "zero_pp_rank_1_mp_rank_00_model_states.pt",
    ],
)
def test_a_truncated_file_is_named(file: str, share: float, copy: Callable[[str], Path]) -> None:
    path = copy("bloom-3-bf16") / TAG / file
    os.truncate(path, int(path.stat().st_size * share))
    error = refusal(path.parent)
    assert str(path) in error.message
    assert error.hint is not None
    assert "copy or download it again" in error.hint


@pytest.mark.slow
def test_a_file_that_is_cut_short_after_it_was_opened_is_named(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("llama2-2-bf16")
    tensors = read(folder).tensors
    for file in (folder / TAG).glob("*_optim_states.pt"):
        os.truncate(file, 64)
    with pytest.raises(UserError, match=r"optim_states\.pt: ends \d+ bytes too early"):
        made(tensors)


class Call:
    """Pickled, it makes the reader call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "zero_pp_rank_1_mp_rank_00_model_states.pt",
    ],
)
def test_a_file_that_would_run_code_is_refused_and_not_run(
    file: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, marker = copy("bloom-3-bf16"), tmp_path / "marker"
    torch.save({"module": {}, "call": Call(os.system, f"touch {marker}")}, folder / TAG / file)
    error = refusal(folder)
    assert f"{folder / TAG / file}: refused: it asks for posix.system" in error.message
    assert not marker.exists()


@pytest.mark.slow
def test_files_of_two_checkpoints_are_not_joined(copy: Callable[[str], Path]) -> None:
    """Of another stage, of another model, of a rank too many, of one rank twice."""
    file = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    folder = copy("llama2-2-bf16")
    right = folder / TAG / file
    original = right.read_bytes()
    shutil.copy(copy("llama2-3-bf16") / TAG / file, right)
    error = refusal(folder)
    assert f"{right}: of ZeRO-3 on 2 ranks, but bf16_zero_pp_rank_0" in error.message
    assert "files of two checkpoints have been mixed" in (error.hint or "")
    shutil.copy(copy("round_robin_gradients") / TAG / file, right)
    assert "elements in group 0 of all ranks, but" in refusal(folder).message
    right.write_bytes(original)
    extra = right.with_name(file.replace("rank_1", "rank_2"))
    shutil.copy(right, extra)
    assert refusal(folder).message == f"{extra}: the others are of 2 ranks"
    extra.rename(right.with_name(file.removeprefix("bf16_")))
    assert refusal(folder).message.endswith(f"{file} is of the same rank")


@pytest.mark.slow
def test_the_weights_of_another_optimizer_are_those_of_the_model(written: Path) -> None:
    """BF16_Optimizer keeps float32 weights too, but does not tell in which order."""
    checkpoint = read(written / "other")
    assert (checkpoint.stage, checkpoint.num_ranks) == (0, WORLD)
    weights = torch.load(written / "other" / "weights.pt")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert is_identical(made(checkpoint.tensors), weights)


@pytest.mark.slow
def test_without_optimizer_files_the_model_is_read_if_it_is_whole(
    copy: Callable[[str], Path],
) -> None:
    for stage in (1, 2, 3):
        folder = copy(f"llama2-{stage}-bf16")
        for file in (folder / TAG).glob("*_optim_states.pt"):
            file.unlink()
    weights = torch.load(folder / "weights.pt").keys()
    for stage in (1, 2):
        checkpoint = read(folder.with_name(f"llama2-{stage}-bf16"))
        assert checkpoint.stage == 0
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {BFLOAT16}
        assert checkpoint.tensors.keys() == weights
    error = refusal(folder)
    assert "only a placeholder: the weights are in the optimizer's files" in error.message
    assert "*_optim_states.pt of all ranks" in (error.hint or "")


# ---- written by hand ----


def write_by_hand(path: Path, weights: Mapping[str, Tensor], stage: int, num_ranks: int) -> Path:
    """The least that a checkpoint can hold: no paddings, frozen weights or second names."""
    folder = path / TAG
    folder.mkdir(parents=True)
    (path / LATEST).write_text(f"{TAG}\n")
    names = {f"module.{name}": tensor for name, tensor in weights.items()}
    model: dict[str, Any] = {
        "module": {n: torch.empty(0) if stage == 3 else t for n, t in names.items()},
        "param_shapes": [{name: tensor.shape for name, tensor in names.items()}],
    }
    whole = [torch.cat([tensor.reshape(-1) for tensor in weights.values()])]
    parts = [list(weights.values()), whole][stage < 3]
    cut = [_padded(part.reshape(-1), num_ranks).chunk(num_ranks) for part in parts]
    for rank in range(num_ranks):
        flat = torch.cat([part[rank] for part in cut])
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        state = {"zero_stage": stage, "partition_count": [num_ranks], key: [flat]}
        start = folder / f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": state}, f"{start}_optim_states.pt")
        if stage == 3:
            torch.save(model, f"{start}_model_states.pt")
    if stage < 3:
        torch.save(model, folder / "mp_rank_00_model_states.pt")
    return path


def _padded(flat: Tensor, num_ranks: int) -> Tensor:
    return torch.cat([flat, flat.new_full((-flat.numel() % num_ranks,), torch.nan)])


def by_hand(path: Path, stage: int = 2) -> Path:
    """Two ranks and one weight."""
    return write_by_hand(path, {"a": torch.ones(2, 3)}, stage, 2) / TAG


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_are_joined_in_the_order_of_their_numbers(stage: int, tmp_path: Path) -> None:
    """Twelve ranks, of which number 10 is not between 1 and 2; 45 elements, 4 on a rank."""
    weights = {
        "a": torch.arange(35.0).reshape(5, 7),
        "b": torch.tensor([35.0]),
        "c": torch.empty(0),
    }
    weights["d"] = torch.arange(36.0, 45.0).reshape(3, 3)
    checkpoint = read(write_by_hand(tmp_path / "x", weights, stage, 12))
    assert is_identical(made(checkpoint.tensors), weights)
    assert checkpoint.num_ranks == 12


@pytest.mark.parametrize("tag", ["", "..", ".", "../x", "/tmp", "a/b", "a\0b", "a" * 256])
def test_latest_leads_nowhere_else(tag: str, tmp_path: Path) -> None:
    (by_hand(tmp_path).parent / LATEST).write_text(tag)
    with pytest.raises(UserError) as error:
        zero.find(tmp_path)
    message = f"{tmp_path / LATEST}: {tag[:40]!r} is not the name of a folder"
    assert error.value.message == message


def test_latest_must_name_a_folder_that_is_there(tmp_path: Path) -> None:
    (by_hand(tmp_path).parent / LATEST).write_text("global_step7")
    with pytest.raises(UserError) as error:
        zero.find(tmp_path)
    assert error.value.message == f"{tmp_path / LATEST} names global_step7, which is not there"


def test_a_folder_is_found_by_the_files_in_it(tmp_path: Path) -> None:
    assert zero.find(tmp_path) is None
    tag = by_hand(tmp_path / "x")
    assert zero.find(tag.parent) == zero.find(tag) == tag
    (tag / LATEST).unlink(missing_ok=True)
    for file in tag.iterdir():
        file.unlink()
    assert zero.find(tag.parent) is None
    assert zero.find(tmp_path / "nowhere") is None


def test_tensor_parallel_checkpoints_are_refused(tmp_path: Path) -> None:
    tag = by_hand(tmp_path)
    file = tag / "mp_rank_01_model_states.pt"
    shutil.copy(tag / "mp_rank_00_model_states.pt", file)
    message = refusal(tmp_path).message
    assert message == f"{file}: the model is split by tensor parallelism, which is not supported"


def test_pipeline_stages_are_refused(tmp_path: Path) -> None:
    file = by_hand(tmp_path) / "mp_rank_00_model_states.pt"
    torch.save({"module": None, "param_shapes": [{}]}, file)
    assert f"{file}: no model in it: DeepSpeed wrote its pipeline" in refusal(tmp_path).message


A_MODEL = {"module": {"a": torch.ones(2, 3)}, "param_shapes": [{"a": [2, 3]}]}


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        {"module": 1},
        {"module": {1: torch.ones(1)}},
        A_MODEL | {"param_shapes": 1},
        A_MODEL | {"param_shapes": [1]},
        A_MODEL | {"param_shapes": [{"a": [-2, -3]}]},
        A_MODEL | {"param_shapes": [{"a": ["x"]}]},
        A_MODEL | {"param_shapes": [{"a": [float("inf")]}]},
        A_MODEL | {"shared_params": ["a"]},
        A_MODEL | {"buffer_names": [1]},
        A_MODEL | {"frozen_param_shapes": {"b": None}},
        A_MODEL | {"dp_world_size": "two"},
    ],
)
def test_a_foreign_model_file_is_named(tree: object, tmp_path: Path) -> None:
    file = by_hand(tmp_path) / "mp_rank_00_model_states.pt"
    torch.save(tree, file)
    assert refusal(tmp_path).message.startswith(f"{file}: not the model of a DeepSpeed checkpoint")


A_SHARE = {
    "zero_stage": 2,
    "partition_count": [2],
    "single_partition_of_fp32_groups": [torch.ones(3)],
}


@pytest.mark.parametrize(
    "state",
    [
        [],
        A_SHARE | {"zero_stage": 7},
        A_SHARE | {"zero_stage": "two"},
        A_SHARE | {"zero_stage": None},
        A_SHARE | {"partition_count": [2, 1]},
        A_SHARE | {"partition_count": None},
        A_SHARE | {"single_partition_of_fp32_groups": [torch.ones(3, 1)]},
        A_SHARE | {"single_partition_of_fp32_groups": [1]},
        A_SHARE | {"param_alignment_paddings": [1]},
        A_SHARE | {"param_alignment_paddings": [[0], [0]]},
        {"zero_stage": 2},
    ],
)
def test_a_foreign_optimizer_file_is_named(state: object, tmp_path: Path) -> None:
    file = by_hand(tmp_path) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": state}, file)
    message = refusal(tmp_path).message
    assert message.startswith(f"{file}: not the optimizer of a ZeRO checkpoint")


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("shape", [[2, 2], [2, 4], [20, 30]])
def test_shapes_that_do_not_fill_the_shares_are_refused(
    shape: list[int], stage: int, tmp_path: Path
) -> None:
    """Six elements; two ranks may add up to three that are none."""
    for file in by_hand(tmp_path, stage).glob("*_model_states.pt"):
        torch.save(torch.load(file) | {"param_shapes": [{"a": shape}]}, file)
    assert "but the shapes of the model's weights ask for" in refusal(tmp_path).message


@pytest.mark.parametrize("stage", [2, 3])
def test_a_second_parameter_group_must_be_on_every_rank(stage: int, tmp_path: Path) -> None:
    for file in by_hand(tmp_path, stage).glob("*_model_states.pt"):
        torch.save(torch.load(file) | {"param_shapes": [{"a": [2, 3]}, {"b": [9]}]}, file)
    assert "but the shapes of the model's weights ask for" in refusal(tmp_path).message


def test_a_weight_that_is_nowhere_is_named(tmp_path: Path) -> None:
    """An empty one at stage 3 that is neither trained nor frozen; one that is tied to nothing."""
    files = sorted(by_hand(tmp_path, stage=3).glob("*_model_states.pt"))
    tree = torch.load(files[0])
    torch.save(tree | {"module": {"experts": torch.empty(0)}}, files[0])
    assert f"{files[0]}: module.experts: empty, and no part" in refusal(tmp_path).message
    torch.save(tree | {"shared_params": {"b": "gone"}}, files[0])
    assert f"{files[0]}: 'b' is tied to 'gone'" in refusal(tmp_path).message


def test_a_frozen_weight_must_be_on_every_rank(tmp_path: Path) -> None:
    files = sorted(by_hand(tmp_path, stage=3).glob("*_model_states.pt"))
    tree = torch.load(files[0]) | {"frozen_param_shapes": {"b": [3]}}
    for file in files:
        torch.save(tree | {"frozen_param_fragments": {"b": torch.ones(1)}}, file)
    assert "'b' has 3 elements, but the ranks hold 2" in refusal(tmp_path).message
    torch.save(tree, files[1])
    assert f"{files[1]}: no part of the weight 'b'" in refusal(tmp_path).message


if __name__ == "__main__":
    main(Path(sys.argv[1]))


# ---- which rank wrote a file ----


def _swap(tag: Path) -> None:
    files = sorted(tag.glob("*_optim_states.pt"))[:2]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)


def _change(tag: Path, change: Callable[[dict[str, Any], int], object]) -> Path:
    for rank, file in enumerate(sorted(tag.glob("*_optim_states.pt"))):
        tree = torch.load(file, weights_only=False)
        change(tree["optimizer_state_dict"], rank)
        torch.save(tree, file)
    return tag


@pytest.fixture
def address() -> Iterator[type]:
    """DeepSpeed's class for a place in a rank's share, without DeepSpeed."""
    name = "deepspeed.utils.tensor_fragment"
    kind = type("fragment_address", (), {"__module__": name})
    with pytest.MonkeyPatch.context() as context:
        for part in ("deepspeed", "deepspeed.utils", name):
            context.setitem(sys.modules, part, ModuleType(part))
        setattr(sys.modules[name], "fragment_address", kind)  # noqa: B010
        yield kind


@pytest.mark.parametrize("stage", [1, 2])
def test_exchanged_ranks_are_found_by_the_weights_that_they_say_they_have(
    stage: int, address: type, tmp_path: Path
) -> None:
    """Ten elements: a has 6 and b has 4, so rank 0 has 5 of a, rank 1 has 1 of a and all of b."""
    weights = {"a": torch.arange(6.0), "b": torch.arange(6.0, 10.0)}
    tag = write_by_hand(tmp_path / "x", weights, stage, 2) / TAG
    assert not read(tag.parent).is_order_told
    slices = [{"a": 5}, {"a": 1, "b": 4}]

    def tell(state: dict[str, Any], rank: int) -> None:
        row = {}
        for name, count in slices[rank].items():
            row[name] = address()
            row[name].__dict__ |= {"numel": count, "start": 0}
        state["param_slice_mappings"] = [row]

    checkpoint = read(_change(tag, tell).parent)
    assert checkpoint.is_order_told
    assert is_identical(made(checkpoint.tensors), weights)
    _swap(tag)
    with pytest.raises(UserError, match=r"rank_0_.* has the weights that .*rank_1_.* should have"):
        read(tag.parent)


@pytest.mark.parametrize("stage", [2, 3])
def test_exchanged_ranks_are_found_by_the_gpu_that_they_were_on(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = by_hand(tmp_path, stage)
    assert not read(tag.parent).is_order_told

    def put(_: dict[str, Any], rank: int) -> None:
        monkeypatch.setattr("torch.serialization.location_tag", lambda _: f"cuda:{rank}")

    # Read on the CPU, and saved as if from the rank's own GPU.
    _change(tag, put)
    assert read(tag.parent).is_order_told
    _swap(tag)
    with pytest.raises(UserError, match=r"its weights were on GPU 1, and those of .*rank_1"):
        read(tag.parent)


def test_exchanged_ranks_are_found_by_the_number_that_they_have(tmp_path: Path) -> None:
    tag = by_hand(tmp_path, 3)

    def number(state: dict[str, Any], rank: int) -> None:
        state["ds_zero_partition_groups"] = [{"partition_rank": rank}]

    assert read(_change(tag, number).parent).is_order_told
    _swap(tag)
    with pytest.raises(UserError, match=r"rank_0_.*: says that it is of rank 1"):
        read(tag.parent)
