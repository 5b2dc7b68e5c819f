"""Hugging Face folders: config, tokenizer files and safetensors, read lazily, written in shards."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignctl.checkpoints.companions import read_json
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES, model_from_hf, weight_map
from alignctl.models.weight_map import hf_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By the names in safetensors headers."""


class HFFolder:
    """The weights of a Hugging Face folder, by their full names, one tensor in memory at a time.

    Names are normalised: a checkpoint saved from the bare model ("h.0…") is read as one saved
    with its head ("transformer.h.0…"); `prefix` remembers which it was.
    """

    def __init__(self, path: Path, *, vocab_divisor: int = 128) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        self.model = model_from_hf(
            self.config, where=str(path / "config.json"), vocab_divisor=vocab_divisor
        )
        family = FAMILIES[self.model.family]
        files = _weight_files(path)
        names = {name: file for name, file in files.items() if not name.endswith(family.HF_IGNORED)}
        is_bare = not any(name.startswith(family.HF_PREFIX) for name in names)
        self.prefix: str = "" if is_bare else family.HF_PREFIX
        self._files: dict[str, tuple[Path, str]] = {
            family.HF_PREFIX + name if is_bare and name != "lm_head.weight" else name: (file, name)
            for name, file in names.items()
        }
        self._handles: dict[Path, Any] = {}
        self._stack = ExitStack()
        self._check_names()

    def __enter__(self) -> "HFFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.clear()
        self._stack.close()

    def tensor(self, name: str) -> Tensor:
        """Reads one tensor by its normalised name."""
        file, stored = self._files[name]
        return self._handle(file).get_tensor(stored)  # type: ignore[no-any-return]

    @property
    def names(self) -> list[str]:
        """Normalised names, in no particular order."""
        return list(self._files)

    def dtype(self) -> torch.dtype:
        """The dtype of the weights.

        Raises:
            UserError: They have several, and one of them could not hold the others unchanged.
        """
        examples = {self._slice(name).get_dtype(): name for name in self._files}
        if len(examples) > 1:
            found = ", ".join(f"{name} is {dtype}" for dtype, name in sorted(examples.items()))
            raise UserError(
                f"{self.path}: the tensors have different types: {found}",
                "choose one for all of them with --dtype; fp32 keeps every value",
            )
        return _DTYPES[next(iter(examples))]

    def _handle(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise _unreadable(file, error) from error
            self._handles[file] = handle
        return self._handles[file]

    def _slice(self, name: str) -> Any:
        """What the file's header says of a tensor; nothing is read."""
        file, stored = self._files[name]
        try:
            return self._handle(file).get_slice(stored)
        except SafetensorError as error:
            raise UserError(
                f"{file}: tensor {stored!r}, which {INDEX} places here, is not in the file"
            ) from error

    def _check_names(self) -> None:
        """Compares names, shapes and types with what is needed, before any weight is read."""
        expected = hf_shapes(weight_map(self.model), self.model)
        found = set(self._files)
        if missing := sorted(set(expected) - found):
            raise UserError(
                f"{self.path}: {len(missing)} of {len(expected)} tensors are missing, "
                f"the first is {missing[0]!r}",
                "the folder is incomplete, or config.json belongs to another model",
            )
        if self.model.tie_embeddings and "lm_head.weight" in found:
            self._check_tied()
            del self._files["lm_head.weight"]
            found.discard("lm_head.weight")
        if unknown := sorted(found - set(expected)):
            raise UserError(
                f"{self.path}: {len(unknown)} tensors do not belong to a {self.model.family} model,"
                f" the first is {unknown[0]!r}",
                "a fine-tuned head or an adapter must be merged or removed first",
            )
        for name, shape in expected.items():
            file, stored = self._files[name]
            header = self._slice(name)
            if (actual := tuple(header.get_shape())) != shape:
                raise UserError(
                    f"{file}: {stored} has shape {list(actual)}, config.json asks for {list(shape)}"
                )
            if header.get_dtype() not in _DTYPES:
                raise UserError(
                    f"{file}: {stored} is of type {header.get_dtype()}",
                    f"supported types: {', '.join(_DTYPES)}; a quantised model cannot be trained",
                )

    def _check_tied(self) -> None:
        names = ("lm_head.weight", FAMILIES[self.model.family].WEIGHTS[0].hf[0])
        shapes = [self._slice(name).get_shape() for name in names]
        if shapes[0] != shapes[1] or not torch.equal(*(self.tensor(name) for name in names)):
            raise UserError(
                f"{self.path}: config.json ties the output layer to the embedding, "
                "but lm_head.weight differs from it",
                "set tie_word_embeddings to false in config.json if the two are meant to differ",
            )


def _unreadable(file: Path, error: Exception) -> UserError:
    if not os.access(file, os.R_OK):  # which safetensors reports as a file that is not there
        return UserError(f"{file}: cannot be read: permission denied")
    is_pointer = file.stat().st_size < 1024 and b"git-lfs" in file.read_bytes()
    return UserError(
        f"{file}: not a readable safetensors file: {error}",
        "this is a Git-LFS pointer, not the weights: run `git lfs pull`"
        if is_pointer
        else "the file is damaged or cut short: copy or download it again",
    )


def _weight_files(path: Path) -> dict[str, Path]:
    """Which file holds which tensor, by the names stored in the files."""
    if (path / INDEX).is_file():
        weight_map_json = read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map_json, dict):
            raise UserError(f"{path / INDEX}: no `weight_map` in it")
        files = {str(name): path / str(file) for name, file in weight_map_json.items()}
        for file in sorted(set(files.values())):
            if file.resolve().parent != path.resolve() and file.parent != path:
                raise UserError(f"{path / INDEX}: {file} lies outside the model folder")
            if not file.is_file():
                raise UserError(f"{path / INDEX}: shard {file.name} is missing")
        return files
    single = path / SINGLE
    if not single.is_file():
        others = sorted(file.name for file in path.glob("*.bin"))
        raise UserError(
            f"{path}: neither {SINGLE} nor {INDEX} is there",
            f"found {others[0]}: save the model as safetensors first" if others else None,
        )
    try:
        with safe_open(single, framework="pt") as handle:
            return dict.fromkeys(handle.keys(), single)
    except (SafetensorError, OSError) as error:
        raise _unreadable(single, error) from error


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int
) -> None:
    """Writes tensors as safetensors, in one file or in shards with an index.

    Args:
        folder: An existing folder.
        tensors: Names and tensors; at most one shard of them is held in memory.
        max_shard_bytes: A shard is closed before it would exceed this, unless it is one tensor.
    """
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    for number, shard in enumerate(_shards(tensors, max_shard_bytes)):
        file = folder / f"model-{number + 1:05d}.partial"
        save_file(shard, file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in shard.values())
        shards.append((file, list(shard)))
    if len(shards) == 1:
        shards[0][0].rename(folder / SINGLE)
        return
    index: dict[str, str] = {}
    for number, (file, names) in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        file.rename(folder / name)
        index |= dict.fromkeys(names, name)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        # safetensors refuses views that share memory, and would write a whole storage for a slice.
        shard[name] = tensor.contiguous().clone() if tensor._is_view() else tensor.contiguous()
        size += tensor.nbytes
    if shard:
        yield shard
