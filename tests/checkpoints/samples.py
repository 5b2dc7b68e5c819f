"""One small model in every format that is read, and what the libraries themselves read from it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import filesystem, state_dict_loader
from torch.distributed.checkpoint.metadata import Metadata

from alignctl.checkpoints import manifest
from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.find import find
from alignctl.checkpoints.formats import legacy_names, legacy_writer, mcore
from alignctl.checkpoints.manifest import HF_FOLDER
from alignctl.checkpoints.tensors.dtypes import FLOAT32
from alignctl.checkpoints.tensors.lazy import Spec
from alignctl.models.families import weight_map
from alignctl.models.weight_map import Vocabulary
from alignctl.run_folder import LATEST
from alignctl.stages.convert import RELEASE, Direction
from tests.checkpoints.folders import architecture, random_weights, write_config, write_single
from tests.checkpoints.legacy_folders import contents, save
from tests.checkpoints.test_zero import TAG, write_by_hand

MODEL = architecture("llama2")
TP = PP = 2


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        direction: Of the conversion that reads it.
        write: Fills a folder.
        read: What its library makes of a folder in which something is damaged that no checksum
            covers: full tensors by our Megatron names. None where everything is covered.
        has_checked_config: Whether config.json cannot change without being noticed.
    """

    direction: Direction
    write: Callable[[Path], object]
    read: Callable[[Path], Mapping[str, Tensor]] | None = None
    has_checked_config: bool = True


def full_tensors() -> dict[str, Tensor]:
    """The model that all of them hold, by our Megatron names."""
    return _merged(random_weights(MODEL))


def _merged(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: row.layout.merge([theirs[part] for part in row.hf], MODEL)
        for name, row in weight_map(MODEL).items()
    }


# ---- Hugging Face's files ----


def _safetensors(folder: Path) -> None:
    write_single(folder, MODEL, random_weights(MODEL))


def _parts(index: str) -> dict[str, dict[str, Tensor]]:
    """The weights in three files."""
    weights = list(random_weights(MODEL).items())
    start, end = index.removesuffix(".index.json").rsplit(".", 1)
    return {f"{start}-{n + 1:05d}-of-00003.{end}": dict(weights[n::3]) for n in range(3)}


def _write_index(folder: Path, index: str, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    write_config(folder, MODEL)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _sharded_safetensors(folder: Path) -> None:
    parts = _parts("model.safetensors.index.json")
    _write_index(folder, "model.safetensors.index.json", parts)
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})


def _bin(folder: Path) -> None:
    """With a tensor that is a part of a longer one, and one that was transposed."""
    weights = random_weights(MODEL)
    norm, projection = "model.norm.weight", "model.layers.0.self_attn.o_proj.weight"
    weights[norm] = torch.cat([torch.ones(5), weights[norm], torch.ones(7)])[5:-7]
    weights[projection] = weights[projection].t().contiguous().t()
    write_config(folder, MODEL)
    torch.save(weights, folder / "pytorch_model.bin")


def _sharded_bin(folder: Path) -> None:
    parts = _parts("pytorch_model.bin.index.json")
    _write_index(folder, "pytorch_model.bin.index.json", parts)
    for name, part in parts.items():
        torch.save(part, folder / name)


def _ours(folder: Path) -> None:
    theirs = folder.with_name(f"{folder.name}-theirs")
    _safetensors(theirs)
    convert(find(theirs), folder, Target("hf", max_shard_bytes=4096))
    shutil.rmtree(theirs)


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    files = folder.glob("*.safetensors")
    return _merged({name: each for file in files for name, each in load_file(file).items()})


# ---- Megatron's ----


def _megatron(folder: Path, format: Any) -> Path:
    release = folder / RELEASE
    release.mkdir()
    _safetensors(folder / "hf")
    convert(find(folder / "hf"), release, Target(format, tp=TP, pp=PP))
    shutil.rmtree(folder / "hf")
    (folder / LATEST).write_text(RELEASE)
    return release


def _foreign_mcore(folder: Path) -> None:
    """Without our manifest, and with the arguments that Megatron-LM keeps in common.pt."""
    release = _megatron(folder, "mcore")
    (release / manifest.NAME).unlink()
    shutil.rmtree(release / HF_FOLDER)
    common = {"args": _arguments(), "checkpoint_version": 3.0, "iteration": 0}
    torch.save(common, release / mcore.COMMON)


def _arguments() -> Any:
    cut = legacy_writer.Cut(MODEL, weight_map(MODEL), TP, PP)
    rows = MODEL.padded_vocab_size(TP)
    args = legacy_writer.arguments(cut, Spec((rows, MODEL.hidden_size), FLOAT32))
    args.params_dtype = torch.float32
    return args


def _foreign_legacy(folder: Path) -> None:
    release = _megatron(folder, "legacy")
    ranks = contents(release)
    shutil.rmtree(release)
    save(release, ranks)


def _pai(folder: Path) -> None:
    """PAI-Megatron-Patch's file name and namespace."""
    release = _megatron(folder, "legacy")
    ranks = contents(release)
    shutil.rmtree(release)
    for tree in ranks.values():
        tree["args"] = SimpleNamespace(**vars(tree["args"]))
    save(release, ranks, file="model_rng.pt")


def index_of(folder: Path) -> Metadata:
    """The index of a checkpoint in the distributed format, as torch reads it."""
    return filesystem.FileSystemReader(folder).read_metadata()


def _read_mcore(folder: Path) -> dict[str, Tensor]:
    """With torch's own reader of the format."""
    reader = filesystem.FileSystemReader(folder / RELEASE)
    known = reader.read_metadata().state_dict_metadata
    rows, full = weight_map(MODEL), {}
    for name, row in rows.items():
        key, layer = mcore.stored_name(name)
        stored = torch.full(known[key].size, torch.nan)  # type: ignore[union-attr]
        state_dict_loader.load({key: stored}, storage_reader=reader, no_dist=True)
        full[name] = stored if layer is None else stored[layer]
        if isinstance(row.layout, Vocabulary):
            full[name] = full[name][: MODEL.vocab_size]
    return full


def _read_legacy(folder: Path) -> dict[str, Tensor]:
    """What lies where, whatever rank it was written by: the format does not tell."""
    found: dict[str, list[Tensor]] = {}
    for file in sorted((folder / RELEASE).glob("mp_rank_*/*.pt")):
        tree = torch.load(file, weights_only=False)["model"]
        stage = int(file.parent.name[-3:])
        for stored, tensor in _leaves(tree):
            name = legacy_names.ours(stored)
            name = name.replace("layers.0.", f"layers.{stage * MODEL.num_layers // PP}.")
            found.setdefault(name, []).append(tensor)
    full = {}
    for name, row in weight_map(MODEL).items():
        full[name] = row.layout.unshard(found[name])
        if isinstance(row.layout, Vocabulary):
            full[name] = full[name][: MODEL.vocab_size]
    return full


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, branch in tree.items():
        if isinstance(branch, Tensor):
            yield prefix + key, branch
        elif isinstance(branch, dict):
            yield from _leaves(branch, f"{prefix}{key}.")


# ---- DeepSpeed's ----


def _zero(folder: Path, stage: int) -> None:
    folder.rmdir()
    write_by_hand(folder, random_weights(MODEL), stage, 2)
    write_config(folder, MODEL)


def _read_zero(folder: Path) -> dict[str, Tensor]:
    """Ranks in the order of their names: nothing in a file tells whose it is."""
    shapes = {name: tensor.shape for name, tensor in random_weights(MODEL).items()}
    files = sorted((folder / TAG).glob("*_optim_states.pt"))
    states = [torch.load(file)["optimizer_state_dict"] for file in files]
    sizes = [shape.numel() for shape in shapes.values()]
    if states[0]["zero_stage"] == 3:
        ranks = [state["fp32_flat_groups"][0] for state in states]
        cut = [rank.split([-(-size // 2) for size in sizes]) for rank in ranks]
        flat = [torch.cat(parts) for parts in zip(*cut, strict=True)]
    else:
        groups = [state["single_partition_of_fp32_groups"][0] for state in states]
        flat = list(torch.cat(groups)[: sum(sizes)].split(sizes))
    tensors = zip(shapes.items(), flat, strict=True)
    return _merged({name: each[: shape.numel()].view(shape) for (name, shape), each in tensors})


FORMATS: dict[str, Format] = {
    "safetensors": Format("hf2mg", _safetensors, _read_safetensors, has_checked_config=False),
    "safetensors-sharded": Format(
        "hf2mg", _sharded_safetensors, _read_safetensors, has_checked_config=False
    ),
    "safetensors-ours": Format("hf2mg", _ours),
    "bin": Format("hf2mg", _bin, has_checked_config=False),
    "bin-sharded": Format("hf2mg", _sharded_bin, has_checked_config=False),
    "mcore": Format("mg2hf", _foreign_mcore, _read_mcore),
    "mcore-ours": Format("mg2hf", lambda folder: _megatron(folder, "mcore")),
    "legacy": Format("mg2hf", _foreign_legacy, _read_legacy),
    "legacy-pai": Format("mg2hf", _pai, _read_legacy),
    "legacy-ours": Format("mg2hf", lambda folder: _megatron(folder, "legacy")),
    "zero-2": Format("hf2mg", lambda f: _zero(f, 2), _read_zero, has_checked_config=False),
    "zero-3": Format("hf2mg", lambda f: _zero(f, 3), _read_zero, has_checked_config=False),
}
"""All formats. Those without "ours" are as others write them, without our manifest."""


def write(name: str, folder: Path) -> Path:
    """Writes the model in a format."""
    folder.mkdir(parents=True)
    FORMATS[name].write(folder)
    return folder
