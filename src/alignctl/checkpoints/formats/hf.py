"""Hugging Face folders: their weights by name, and the way back."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from alignctl.checkpoints.auxiliary_files import read_json
from alignctl.checkpoints.formats import hf_files, safetensors_file
from alignctl.checkpoints.formats.hf_files import INDEX, SINGLE
from alignctl.checkpoints.formats.wrapped_names import unwrap
from alignctl.checkpoints.manifest import Recorder
from alignctl.checkpoints.tensors.dtypes import FLOAT32, FLOATS, Bits, DType
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec
from alignctl.config.sections import Head, Model
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES, head_of, model_from_hf, weight_map
from alignctl.models.weight_map import SCORE_HEADS, Weight, full_shape, hf_shapes

_PEFT = re.compile(r"\.lora_[AB]\.|\.base_layer\.|\.modules_to_save\.|^base_model\.model\.")
"""In the names of a model that PEFT has changed."""

_REWARD_PREFIX = re.compile(r"^rwtran[a-z]*\.")
"""Of the reward models of DeepSpeed-Chat; PAI-Megatron-Patch spells it in another way."""

SpecT = TypeVar("SpecT", bound=Spec)


@dataclass(frozen=True)
class HFFolder:
    """The weights of a Hugging Face model, by their full names; none is read yet.

    Names are normalised: a checkpoint saved from the bare model ("h.0…") is read as one saved
    with its head ("transformer.h.0…"), a score head has transformers' own name.

    Attributes:
        path: The folder.
        config: Its config.json.
        model: The architecture.
        head: What is on top of the layers.
        prefix: Of the stored names of the model below the head; may be empty.
        tensors: By their normalised names.
        files: One line that says which files were read, and which were not.
    """

    path: Path
    config: Mapping[str, Any]
    model: Model
    head: Head
    prefix: str
    tensors: Mapping[str, LazyTensor]
    files: str = ""


def read(path: Path, *, vocab_divisor: int = 128) -> HFFolder:
    """Read the headers of a folder's weight files and compare them with its config.json.

    Raises:
        UserError: The config is not of a family of ours, a file is missing or damaged, or the
            tensors are not those that the config asks for.
    """
    config = read_json(path / "config.json")
    model = model_from_hf(config, where=str(path / "config.json"), vocab_divisor=vocab_divisor)
    tensors, files = hf_files.read(path)
    return replace(normalise(path, config, model, tensors), files=files)


def normalise(
    path: Path, config: Mapping[str, Any], model: Model, stored: Mapping[str, LazyTensor]
) -> HFFolder:
    """Give tensors their full names, and compare them with what the architecture asks for.

    Args:
        path: Where they are, for messages.
        config: The transformers config, as it is kept for the way back.
        model: The architecture.
        stored: Tensors by the names that they have on disk.

    Raises:
        UserError: A tensor is missing, unknown, misshapen, or of a type that cannot be trained.
    """
    family = FAMILIES[model.family]
    check_depth(path, stored, model)
    if changed := next(filter(_PEFT.search, stored), None):
        raise UserError(
            f"{path}: {changed!r} in it is a name of PEFT's: the model was saved with its adapters "
            "not merged",
            "load it with PEFT, call merge_and_unload(), and save the result",
        )
    names: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        plain = _REWARD_PREFIX.sub("", unwrap(name)).replace("v_head.", "score.")
        if plain in names:
            raise UserError(f"{tensor.where}: the same weight as {names[plain].where}")
        if not plain.endswith(family.hf_ignored):
            names[plain] = tensor
    is_bare = not any(name.startswith(family.hf_prefix) for name in names)
    head = head_of(names)
    tops = {name for rows in SCORE_HEADS.values() for row in rows for name in row.hf}
    tensors = {
        family.hf_prefix + name if is_bare and name not in tops | {"lm_head.weight"} else name: each
        for name, each in names.items()
    }
    if model.tie_embeddings and "lm_head.weight" in tensors:
        embedding = FAMILIES[model.family].weights[0].hf[0]
        output = tensors.pop("lm_head.weight")
        if embedding in tensors:
            tensors[embedding] = tensors[embedding].tied_to(output)
    check_names(path, tensors, hf_shapes(weight_map(model, head), model), model)
    prefix = "" if is_bare else family.hf_prefix
    return HFFolder(path, config, model, head, prefix, tensors)


def check_depth(path: Path, tensors: Collection[str], model: Model) -> None:
    """Refuse an impossible number of layers, before a name is made for each of them.

    Raises:
        UserError: There are fewer tensors than layers.
    """
    if model.num_layers > len(tensors):
        raise UserError(
            f"{path}: {len(tensors)} tensors cannot be the {model.num_layers} layers that its "
            "config tells of",
            "the folder is incomplete, or its config belongs to another model",
        )


def check_names(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    expected: Mapping[str, tuple[int, ...]],
    model: Model,
) -> None:
    """Compare names, shapes and types with what is needed, before any weight is read.

    Raises:
        UserError: A tensor is missing, unknown, misshapen, or of a type that cannot be trained.
    """
    missing = [name for name in expected if name not in tensors]
    unknown = sorted(set(tensors) - set(expected))
    if missing:
        found = f"; instead there is {tensors[unknown[0]].where}" if unknown else ""
        raise UserError(
            f"{path}: {len(missing)} of {len(expected)} tensors are missing, "
            f"the first is {missing[0]!r}{found}",
            "the names are those of another program, or the config is of another model"
            if len(missing) == len(expected) and unknown
            else "the folder is incomplete, or its config belongs to another model",
        )
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} tensors do not belong to a {model.family} model,"
            f" the first is {unknown[0]!r}",
            "a fine-tuned head or an adapter must be merged or removed first",
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise UserError(
                f"{tensor.where}: shape {list(tensor.shape)}, but the model's config asks for "
                f"{list(shape)}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{tensor.where}: its type is {tensor.dtype.name}",
                f"supported types: {', '.join(each.name for each in FLOATS)}; a quantised model "
                "cannot be trained",
            )


def common_dtype(path: Path, tensors: Iterable[LazyTensor]) -> DType:
    """Return the one dtype of all weights.

    Raises:
        UserError: They have several.
    """
    examples = {tensor.dtype: tensor.where for tensor in tensors}
    if len(examples) > 1:
        found = "\n  ".join(sorted(f"{t.name}: {where}" for t, where in examples.items()))
        raise UserError(
            f"{path}: the tensors have different types:\n  {found}",
            "choose one for all of them with --dtype; fp32 keeps every value",
        )
    return next(iter(examples))


def merge_tensors(folder: HFFolder) -> dict[str, LazyTensor]:
    """Make the full Megatron tensors of a folder, by our Megatron names."""
    return {
        name: _merge_parts(row, [folder.tensors[part] for part in row.hf], folder.model)
        for name, row in weight_map(folder.model, folder.head).items()
    }


def _merge_parts(row: Weight, parts: Sequence[LazyTensor], model: Model) -> LazyTensor:
    dtypes = {part.dtype for part in parts}
    dtype = dtypes.pop() if len(dtypes) == 1 else FLOAT32
    same = [part.to(dtype) for part in parts]
    return LazyTensor(
        full_shape(row, model),
        dtype,
        lambda: row.layout.merge([part.bits() for part in same], model),
        parts[0].where,
    )


@dataclass(frozen=True)
class Part(Spec):
    """A Hugging Face tensor that is to be written.

    Attributes:
        row: Our Megatron name of the tensor it is cut out of.
        number: Which part of that it is.
    """

    row: str
    number: int


def specs(model: Model, head: Head, prefix: str, tensors: Mapping[str, Spec]) -> dict[str, Part]:
    """Describe the tensors that a folder is to hold, by name, in the order of the model.

    Args:
        model: The architecture.
        head: What is on top.
        prefix: Of the names below the head.
        tensors: Full tensors by our Megatron names.
    """
    rows, ours = weight_map(model, head), FAMILIES[model.family].hf_prefix
    shapes = hf_shapes(rows, model)
    return {
        prefix + name.removeprefix(ours) if name.startswith(ours) else name: Part(
            shapes[name], tensors[row].dtype, row, number
        )
        for row, weight in rows.items()
        for number, name in enumerate(weight.hf)
    }


def shards(specs: Mapping[str, SpecT], max_shard_bytes: int) -> list[dict[str, SpecT]]:
    """Divide tensors among files, and sort those of a file by name.

    That order is safetensors' own, so a file of ours is what transformers would have written.

    Args:
        specs: What will be written, in the order of the model.
        max_shard_bytes: A shard is closed before it would exceed this, unless it is one tensor.
    """
    files: list[dict[str, SpecT]] = [{}]
    size = 0
    for name, spec in specs.items():
        if files[-1] and size + spec.num_bytes > max_shard_bytes:
            files.append({})
            size = 0
        files[-1][name] = spec
        size += spec.num_bytes
    return [dict(sorted(file.items())) for file in files]


def write(
    folder: Path,
    shards: Sequence[Mapping[str, Spec]],
    tensors: Iterator[Bits],
    *,
    recorder: Recorder,
) -> None:
    """Write tensors as safetensors, in one file or in shards with an index.

    Args:
        folder: An existing folder.
        shards: What each file holds.
        tensors: The tensors in that order; one of them is held in memory.
        recorder: Opens every file.
    """
    places: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        name = SINGLE if len(shards) == 1 else name
        with recorder.open(folder / name) as stream:
            writer = safetensors_file.Writer(stream, shard)
            for _ in shard:
                writer.write(next(tensors))
        places |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(spec.num_bytes for shard in shards for spec in shard.values())
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        with recorder.open(folder / INDEX) as stream:
            stream.write((json.dumps(content, indent=2) + "\n").encode())
