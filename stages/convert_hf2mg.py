"""Hugging Face folder to Megatron checkpoint, tensor by tensor, in one process and without a GPU.

    alignctl convert-hf2mg --load models/llama2-7b --save models/mg

The result is `SAVE/release/` in Megatron-Core's distributed format with the tracker file beside
it. The format is independent of the layout; --tp and --pp decide the vocabulary padding and are
checked against the model, so that a layout which cannot work is refused here already.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from alignctl import atomic, console
from alignctl.config.convert import ConvertOptions
from alignctl.data.tokenizer import check_fits, load_tokenizer
from alignctl.errors import UserError
from alignctl.launch.run_folder import LATEST
from alignctl.reporting.bytes_progress import BytesProgress

if TYPE_CHECKING:
    import torch

    from alignctl.checkpoints.hf import HFFolder
    from alignctl.checkpoints.mcore import LazyTensor
    from alignctl.checkpoints.source import Source

RELEASE = "release"
"""Megatron's name for a checkpoint that comes from elsewhere and has no iteration."""


def run(options: ConvertOptions) -> None:
    """Converts, and prints the folder that was written.

    Raises:
        UserError: The source is not a model of ours, the layout does not fit it, or the target
            is taken. Nothing is left behind.
    """
    from alignctl.checkpoints.hf import HFFolder
    from alignctl.checkpoints.source import find

    divisor = options.model.vocab_divisor if options.model else 128
    source = find(options.load, vocab_divisor=divisor)
    if source.kind != "hf":
        raise UserError(
            f"{options.load}: this is a Megatron checkpoint already",
            f"the other direction is alignctl convert-mg2hf --load {options.load} --save DIR",
        )
    check(options, source)
    console.say(f"from: {source.description}")
    with atomic.new_folder(options.save) as partial:
        (partial / RELEASE).mkdir()
        with HFFolder(source.path, vocab_divisor=divisor) as folder:
            _write(options, source, folder, partial / RELEASE)
        (partial / LATEST).write_text(RELEASE, encoding="utf-8")
    console.say(f"to: {options.save} (Megatron-Core, for any TP and PP)")
    console.emit(str(options.save))


def check(options: ConvertOptions, source: "Source") -> None:
    """What can be known before a tensor is read.

    Raises:
        UserError: The preset describes another model, the layout does not fit, or the tokenizer
            is none or has more tokens than the embedding has rows.
    """
    from alignctl.models.families import differences

    if options.model and (found := differences(options.model, source.model)):
        raise UserError(
            f"the preset and {source.path} describe different models:\n  " + "\n  ".join(found),
            "choose the preset of this model, or leave --preset out",
        )
    if problems := source.model.layout_problems(options.tp, options.pp, prefix="--"):
        raise UserError("; ".join(problems))
    if options.tokenizer:
        check_fits(load_tokenizer(options.tokenizer), source.model.vocab_size)


def _write(options: ConvertOptions, source: "Source", folder: "HFFolder", target: Path) -> None:
    from alignctl.checkpoints import mcore
    from alignctl.checkpoints.companions import copy_companions
    from alignctl.checkpoints.dtypes import DTYPES, name_of
    from alignctl.checkpoints.manifest import HF_FOLDER, Manifest

    dtype = folder.dtype() if options.dtype == "keep" else DTYPES[options.dtype]
    rows = source.model.padded_vocab_size(options.tp)
    tensors = _lazy_tensors(folder, dtype, rows)
    total = sum(tensor.numel for tensor in tensors.values()) * dtype.itemsize
    with BytesProgress("writing", total) as progress:
        mcore.write(
            target,
            tensors,
            num_layers=source.model.num_layers,
            dtype=dtype,
            on_bytes=progress.advance,
        )
    copy_companions(source.path, target / HF_FOLDER, tokenizer=options.tokenizer)
    Manifest(
        iteration=0,
        model=source.model,
        dtype=name_of(dtype),
        padded_vocab_size=rows,
        hf_prefix=folder.prefix,
    ).write(target)


def _lazy_tensors(folder: "HFFolder", dtype: "torch.dtype", rows: int) -> "dict[str, LazyTensor]":
    """Every Megatron tensor of the model, made from the folder when it is its turn."""
    from alignctl.checkpoints.mcore import LazyTensor
    from alignctl.models.families import weight_map
    from alignctl.models.weight_map import Vocabulary, Weight, full_shape, pad_rows

    def lazy(weight: Weight) -> LazyTensor:
        is_vocabulary = isinstance(weight.layout, Vocabulary)

        def make() -> "torch.Tensor":
            full = weight.layout.merge([folder.tensor(name) for name in weight.hf], folder.model)
            return (pad_rows(full, rows) if is_vocabulary else full).to(dtype)

        shape = full_shape(weight, folder.model)
        return LazyTensor((rows, *shape[1:]) if is_vocabulary else shape, make)

    return {name: lazy(weight) for name, weight in weight_map(folder.model).items()}
