"""Conversions: Hugging Face to Megatron, back, and from one Megatron layout or format to another.

    alignctl convert-hf2mg --load models/llama2-7b --save models/mg
    alignctl convert-mg2mg --load models/mg --save models/old --format legacy --tp 4 --pp 2
    alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/llama2-7b-sft

One process, no GPU, one tensor in memory at a time. A Megatron checkpoint is written as
`SAVE/release/` with the tracker file beside it. The result is compared with what was read before
it gets its name: a folder that is there is complete and right.
"""

import shlex
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from alignctl import allocator, atomic, console
from alignctl.checkpoints import manifest, padding
from alignctl.checkpoints.auxiliary_files import code_beside, read_json
from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.find import find
from alignctl.checkpoints.formats import peft
from alignctl.checkpoints.identity import recipe_of
from alignctl.checkpoints.source import Source
from alignctl.checkpoints.tensors.dtypes import BY_FLAG
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.convert import ConvertOptions
from alignctl.config.places import place
from alignctl.data.tokenizer import check_fits, load_tokenizer
from alignctl.errors import RunError, TakenError, UserError
from alignctl.models.families import differences, model_from_hf
from alignctl.reporting import model_card
from alignctl.reporting.progress.bytes import BytesProgress
from alignctl.reporting.progress.ending import finishing
from alignctl.run_folder import LATEST
from alignctl.stages.shared.ending import generate_command

Direction = Literal["hf2mg", "mg2hf", "mg2mg"]

RELEASE = "release"
"""Megatron's name for a checkpoint that comes from elsewhere and has no iteration."""

_MEGATRON = ("mcore", "legacy")


def run(
    direction: Direction,
    options: ConvertOptions,
    *,
    preset: str = "NAME",
    on_wait: atomic.OnWait | None = None,
) -> None:
    """Convert, and print the folder that was written, or that the same conversion wrote before.

    Args:
        direction: Which of the commands it is.
        options: What it was told.
        preset: The model's preset, for the command that is named as the next one.
        on_wait: Told that another conversion to the same folder is waited for; None: do not wait.

    Raises:
        UserError: The source is not a model of ours or damaged, the layout does not fit it, or
            the target is taken. Nothing is left behind.
        RunError: What was written is not what was read. It is removed.
    """
    allocator.keep_freed()
    sources: list[Source] = []

    def following() -> str:
        return _following(direction, options, sources[0], preset)

    with finishing(f"convert-{direction}", "converted", options.save, following):
        sources.append(_run(direction, options, on_wait))
    console.emit(str(options.save))


def _following(direction: Direction, options: ConvertOptions, source: Source, preset: str) -> str:
    """Return the command that usually goes on with what was written."""
    save = options.save
    if direction == "mg2mg":
        words = ["verify", options.load, save]
    elif options.adapter_only:
        words = ["report", options.load]
    elif source.role == "reward":
        pairs = ["--data", "PAIRS", "--output", place("answers", f"{save.name}-pairs")]
        words = ["eval", "preference", save, *pairs]
    elif direction == "hf2mg":
        words = ["sft", "--preset", preset, "--load", save]
    else:
        return generate_command(save)
    return shlex.join(["alignctl", *map(str, words)])


def _run(direction: Direction, options: ConvertOptions, on_wait: atomic.OnWait | None) -> Source:
    """Convert; return what was read."""
    source = find(
        options.load,
        vocab_divisor=options.model.vocab_divisor if options.model else 128,
        expected=options.model,
    )
    check(direction, options, source)
    console.say(f"from: {source.description}")
    if options.base and not options.adapter_only and model_card.find_run(options.load) is None:
        raise UserError(
            f"--base {options.base} has no effect: --load {options.load} is no run, and gets no "
            "model card",
            "leave --base out, or give the run folder",
        )
    if options.adapter_only:
        _write_adapters(options, source, on_wait)
        return source
    told = options.model_dump(mode="json", include=_SAYS_WHAT)
    target = Target(
        format="hf" if direction == "mg2hf" else options.format,
        dtype=BY_FLAG.get(options.dtype),
        tp=options.tp,
        pp=options.pp,
        tokenizer=options.tokenizer,
        max_shard_bytes=options.max_shard_size,
        made_from=recipe_of(source, {**told, "direction": direction}, options.tokenizer),
    )
    try:
        _convert(options, source, target, on_wait)
    except TakenError:
        if not _is_there(options.save, target):
            raise
        console.say(_THERE.format(options.save))
    else:
        _tell(options, source, target)
    return source


_THERE = "{} is there already, whole and from the same: nothing is to do"

_SAYS_WHAT = {"format", "dtype", "tp", "pp", "max_shard_size", "verify"}
"""The options that change what is written, or how it is verified."""


def _is_there(save: Path, target: Target) -> bool:
    """Tell whether a folder is what the same conversion has written.

    Raises:
        UserError: It is, but a file in it is missing or was changed.
    """
    folder = save if target.format == "hf" else save / RELEASE
    if not (folder / manifest.NAME).is_file():
        return False
    found = manifest.read(folder)
    if found.made_from != target.made_from:
        return False
    manifest.verify_checksums(folder, found)
    return True


def _convert(
    options: ConvertOptions, source: Source, target: Target, on_wait: atomic.OnWait | None
) -> None:
    with atomic.new_folder(options.save, on_wait) as partial:
        total = sum(tensor.num_bytes for tensor in source.tensors.values())
        if target.dtype is not None:
            total = sum(tensor.numel * target.dtype.itemsize for tensor in source.tensors.values())
        with BytesProgress("converting", total) as progress:
            _write(source, partial, target, progress.advance)
        if target.format == "hf":
            _write_card(options, partial)
        written = _opened(source, partial, target)
        if options.verify != "none":
            _verify(source, written, target, is_full=options.verify == "full")


def _write_card(options: ConvertOptions, folder: Path) -> None:
    """Write the card of a model that a run has made; the base's own is kept beside it."""
    if model_card.find_run(options.load) is None:
        return
    results = [path for path in sorted(place("answers", "").glob("*")) if path.is_dir()]
    card = folder / model_card.NAME
    try:
        text = model_card.render(
            options.load, base=options.base, results=results, is_adapter=options.adapter_only
        )
    except UserError as error:  # an older run, or an evaluation, is no reason not to export
        console.say(f"note: no model card is written: {error.message}")
        return
    if card.is_file() and not model_card.is_ours(card):
        card.rename(folder / "README-base.md")
    card.write_text(text, encoding="utf-8")


def _tell(options: ConvertOptions, source: Source, target: Target) -> None:
    """Say what was written, and what it lacks."""
    console.say(f"to: {options.save} ({_description(target)})")
    if note := _padding(source, target, options.save):
        console.say(f"note: {note}")
    if code := code_beside(source.auxiliary):
        console.say(f"note: not taken along, and never run: {', '.join(code)}")
    if source.unchecked:
        console.say(f"note: not checked: {source.unchecked}")
    if source.auxiliary is None and options.tokenizer is None:
        console.say(
            "note: no tokenizer was found beside the source; --tokenizer DIR takes one along"
        )
    _tell_offset(source, "; it is kept in alignctl.json")


def _tell_offset(source: Source, where: str = "") -> None:
    """Say what a reward model's scores lack to be centred, and where that is kept."""
    if source.manifest and (offset := source.manifest.score_offset) is not None:
        console.say(
            f"note: score_offset {offset:.4f} is not in the weights: add it to every score to "
            f"centre them{where}"
        )


def _padding(source: Source, target: Target, written: Path) -> str | None:
    """Return what there is to say of a reward model's padding token."""
    if source.head != "linear" or source.auxiliary is None:
        return None
    config = read_json(source.auxiliary / "config.json")
    if target.format != "hf":
        problem = padding.problem(config) if source.manifest is None else None
        return problem and (
            f"{problem}; alignctl scores the last token of each text, and convert-mg2hf writes a "
            "pad_token_id with which transformers does so too"
        )
    old, new = (each.get("pad_token_id") for each in (config, read_json(written / "config.json")))
    if old == new:
        return None
    return (
        f"pad_token_id is {new}, in the tokenizer too: with {old} transformers would not score "
        "the last token of texts in a batch"
    )


def _write_adapters(options: ConvertOptions, source: Source, on_wait: atomic.OnWait | None) -> None:

    try:
        with atomic.new_folder(options.save, on_wait) as folder:
            peft.write(source, folder, options.base)
            _write_card(options, folder)
    except TakenError:
        if not (options.save.is_dir() and peft.is_written(source, options.save, options.base)):
            raise
        console.say(_THERE.format(options.save))
        return
    console.say(f"to: {options.save} (adapters, for PEFT)")
    assert source.adapted is not None
    beside = source.adapted.base.auxiliary
    config = read_json(beside / "config.json") if beside else {}
    if source.head == "linear" and padding.problem(config):
        console.say(
            "note: the base's config has no padding token that ends no text: load it with another "
            "pad_token_id, or transformers will not score the last token of texts in a batch"
        )
    _tell_offset(source)


def _write(source: Source, folder: Path, target: Target, on_bytes: Callable[[int], None]) -> None:
    """Write a model; a Megatron checkpoint in a folder of its own, which the tracker names."""
    if target.format == "hf":
        convert(source, folder, target, on_bytes=on_bytes)
        return
    (folder / RELEASE).mkdir()
    convert(source, folder / RELEASE, target, on_bytes=on_bytes)
    (folder / LATEST).write_text(RELEASE, encoding="utf-8")


def _opened(source: Source, folder: Path, target: Target) -> Source:
    """Open what was written as a user would, from its top.

    Raises:
        UserError: The config that was taken along describes no model, or another one.
        RunError: It is not the model that was read, or no model.
    """
    try:
        written = find(folder, vocab_divisor=source.model.vocab_divisor)
    except UserError as error:
        _check_config(source)
        raise RunError(f"what was written cannot be read again: {error.message}") from error
    found = [(written.kind, target.format), (written.head, source.head)]
    problems = [f"{ours} != {wanted}" for ours, wanted in found if ours != wanted]
    if problems := problems + differences(written.model, source.model):
        _check_config(source)
        raise RunError("what was written is read as another model:\n  " + "\n  ".join(problems))
    return written


def _check_config(source: Source) -> None:
    """Compare the config beside a checkpoint, which anybody may have edited, with its weights.

    Raises:
        UserError: It describes no model, or another one.
    """
    if source.auxiliary is None or not (file := source.auxiliary / "config.json").is_file():
        return
    divisor = source.model.vocab_divisor
    told = model_from_hf(read_json(file), where=str(file), vocab_divisor=divisor)
    if problems := differences(told, source.model):
        raise UserError(
            f"{file}: it describes another model than the weights beside it:\n  "
            + "\n  ".join(problems),
            "put back the config.json that belongs to them",
        )


def _description(target: Target) -> str:
    return {
        "hf": "Hugging Face",
        "mcore": "Megatron-Core, for any TP and PP",
        "legacy": f"Megatron legacy, TP {target.tp}, PP {target.pp}",
    }[target.format]


def check(direction: Direction, options: ConvertOptions, source: Source) -> None:
    """Check what can be known before a tensor is read.

    Raises:
        UserError: The source is of the other kind, the preset describes another model, the layout
            does not fit, the weights are for another role, or the tokenizer is none or has more
            tokens than the embedding has rows.
    """
    load = options.load
    if direction == "hf2mg" and source.kind in _MEGATRON:
        raise UserError(
            f"{load}: this is a Megatron checkpoint already",
            f"the other direction is alignctl convert-mg2hf --load {load} --save DIR; another "
            f"layout or format is alignctl convert-mg2mg --load {load} --save DIR",
        )
    is_adapted_hf = direction == "mg2hf" and source.adapted is not None
    if direction != "hf2mg" and source.kind not in _MEGATRON and not is_adapted_hf:
        raise UserError(
            f"{load}: this is a Hugging Face folder already"
            if source.kind == "hf"
            else f"{load}: this is a DeepSpeed checkpoint of a Hugging Face model",
            f"the other direction is alignctl convert-hf2mg --load {load} --save DIR",
        )
    if options.model and (found := differences(options.model, source.model)):
        raise UserError(
            f"the preset and {source.path} describe different models:\n  " + "\n  ".join(found),
            "choose the preset of this model, or leave --preset out",
        )
    if problems := source.model.layout_problems(options.tp, options.pp, prefix="--"):
        raise UserError("; ".join(problems))
    if options.role not in (None, source.role):
        raise UserError(
            f"{source.path}: --role {options.role} was asked for, but this is a "
            f"{source.role} model",
            "alignctl reward makes a reward model of a policy"
            if options.role == "reward"
            else "a reward model cannot speak: give the policy it was made from",
        )
    if options.tokenizer:
        check_fits(load_tokenizer(options.tokenizer), source.model.vocab_size)


def _loadable(source: Source) -> Path | None:
    """Return the folder of a source that transformers can load without us."""
    return source.path if source.kind == "hf" and source.adapted is None else None


def _verify(source: Source, written: Source, target: Target, *, is_full: bool) -> None:
    """Compare what was written with the source.

    Raises:
        RunError: They differ.
    """
    from alignctl.checkpoints.comparison import compare

    # Of libraries that are not needed here, and of names that will go some day.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    from alignctl.engines.megatron import cpu as megatron_cpu

    megatron_cpu.load()
    from alignctl.engines.streamed import comparison as streamed

    started = time.perf_counter()
    dtype = next(iter(written.tensors.values())).dtype
    wanted: Mapping[str, LazyTensor] = {
        name: tensor.to(dtype) for name, tensor in source.tensors.items()
    }
    num_bytes = sum(tensor.num_bytes for tensor in wanted.values())
    if is_full:
        with BytesProgress("comparing", num_bytes) as progress:
            result = compare(wanted, written.tensors, on_bytes=progress.advance)
        if not result.is_identical:
            raise RunError(f"the written model differs from its source: {result.describe()}")
    # transformers reads what has Hugging Face's names, Megatron-Core the other side.
    theirs, ours, folder = wanted, written.tensors, _loadable(source)
    if target.format == "hf":
        theirs, ours, folder = ours, wanted, written.path
    per_layer = num_bytes // source.model.num_layers
    num_layers = source.model.num_layers if is_full else min(3, source.model.num_layers)
    with BytesProgress("running both", per_layer * num_layers) as progress:
        try:
            outputs = streamed.compare(
                source.tensors if folder == source.path else theirs,
                ours,
                source.model,
                source.head,
                layers="all" if is_full else "spot",
                on_layer=lambda _: progress.advance(per_layer),
                folder=folder,
                is_padded=target.format == "hf",
            )
        except UserError as error:
            if target.format != "hf":
                raise
            raise RunError(f"what was written is not what was read: {error.message}") from error
    if not outputs.is_same:
        raise RunError(
            f"the written model computes something else than its source: {outputs.describe()}"
        )
    seconds = time.perf_counter() - started
    console.say(f"verified in {seconds:.1f} s: {outputs.describe()}")
