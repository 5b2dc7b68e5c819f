"""Megatron checkpoint or run folder to Hugging Face folder, in one process and without a GPU.

    alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/llama2-7b-sft

Config and tokenizer files are those of the model that the run started from, byte for byte (the
dtype entry of config.json follows the weights). The vocabulary padding is removed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alignctl import atomic, console
from alignctl.config.convert import ConvertOptions
from alignctl.errors import UserError
from alignctl.reporting.bytes_progress import BytesProgress
from alignctl.stages import convert_hf2mg

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignctl.checkpoints.source import Source

MAX_SHARD_BYTES = 5 * 10**9
"""Largest safetensors file, the hub's usual limit."""


def run(options: ConvertOptions) -> None:
    """Converts, and prints the folder that was written.

    Raises:
        UserError: The source is not a Megatron checkpoint, is damaged, or the target is taken.
            Nothing is left behind.
    """
    from alignctl.checkpoints.dtypes import DTYPES, TORCH_DTYPES
    from alignctl.checkpoints.hf import write_weights
    from alignctl.checkpoints.manifest import verify_checksums
    from alignctl.checkpoints.source import find

    source = find(options.load)
    if source.manifest is None:
        raise UserError(
            f"{options.load}: this is a Hugging Face folder already",
            f"the other direction is alignctl convert-hf2mg --load {options.load} --save DIR",
        )
    convert_hf2mg.check(options, source)
    console.say(f"from: {source.description}")
    verify_checksums(source.path, source.manifest)
    stored = TORCH_DTYPES[source.manifest.dtype]
    dtype = stored if options.dtype == "keep" else DTYPES[options.dtype]
    with atomic.new_folder(options.save) as partial:
        write_weights(partial, _tensors(source, dtype), max_shard_bytes=MAX_SHARD_BYTES)
        _write_companions(options, source, dtype, partial)
    console.say(f"to: {options.save} (Hugging Face {source.model.family})")
    console.emit(str(options.save))


def _tensors(source: "Source", dtype: "torch.dtype") -> "Iterator[tuple[str, Tensor]]":
    """The tensors under their Hugging Face names, one Megatron tensor in memory at a time."""
    from alignctl.checkpoints.mcore import McoreFolder
    from alignctl.models.families import FAMILIES, weight_map

    assert source.manifest is not None
    ours, theirs = FAMILIES[source.model.family].HF_PREFIX, source.manifest.hf_prefix
    folder = McoreFolder(source.path)
    rows = weight_map(source.model)
    total = sum(folder.numel(name) for name in rows) * dtype.itemsize
    with BytesProgress("writing", total) as progress:
        for name, weight in rows.items():
            full = folder.tensor(name)
            progress.advance(full.numel() * dtype.itemsize)
            parts = weight.layout.split(full, source.model)
            for hf_name, part in zip(weight.hf, parts, strict=True):
                yield (
                    hf_name.replace(ours, theirs, 1) if hf_name.startswith(ours) else hf_name,
                    part.to(dtype),
                )


def _write_companions(
    options: ConvertOptions, source: "Source", dtype: "torch.dtype", target: Path
) -> None:
    """Config and tokenizer files; config.json is only touched when its dtype would be wrong."""
    from alignctl.checkpoints.companions import copy_companions, read_json
    from alignctl.checkpoints.dtypes import name_of

    copy_companions(source.companions, target, tokenizer=options.tokenizer)
    config = target / "config.json"
    content = read_json(config)
    key = "torch_dtype" if "torch_dtype" in content and "dtype" not in content else "dtype"
    if content.get(key, "float32") != name_of(dtype):
        text = json.dumps({**content, key: name_of(dtype)}, indent=2, sort_keys=True)
        config.write_text(text + "\n", encoding="utf-8")
