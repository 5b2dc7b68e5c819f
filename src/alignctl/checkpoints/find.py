"""Finds what a path given to `--load` is, and its weights, without reading one of them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from alignctl import user_files
from alignctl.checkpoints import manifest
from alignctl.checkpoints.adapted import base_folder, check_base, merge_adapters
from alignctl.checkpoints.auxiliary_files import explain_dangling, read_json, refuse_links_out
from alignctl.checkpoints.formats import (
    hf,
    hf_files,
    legacy,
    mcore,
    peft,
    rank_files,
    zero,
    zero_files,
)
from alignctl.checkpoints.formats.megatron_args import model_from
from alignctl.checkpoints.manifest import HF_FOLDER, METADATA, Manifest
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.source import Adapters, Kind, Source
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Model
from alignctl.errors import UserError
from alignctl.models.adapters import adapter_shapes
from alignctl.models.families import (
    FAMILIES,
    differences,
    head_of,
    model_from_hf,
    weight_map,
)
from alignctl.models.weight_map import Vocabulary, full_shape
from alignctl.run_folder import LATEST, checkpoint_at

_NO_ORDER = (
    "nothing in these {} files says which rank wrote them, so their names were believed: had two "
    "been exchanged, the weights would be scrambled"
)


def find(path: Path, *, vocab_divisor: int = 128, expected: Model | None = None) -> Source:
    """Find the model that a path means, and look at every name, shape and type in it.

    Accepts a Hugging Face folder, one checkpoint (`.../iter_0000100`), a folder of checkpoints
    with `latest_checkpointed_iteration.txt`, a run folder (its latest checkpoint; `RUN@best` or
    `RUN@iter_100` another one), or a DeepSpeed checkpoint with the model's config.json beside it.

    Args:
        path: The folder.
        vocab_divisor: What the padded vocabulary is a multiple of, per tensor-parallel rank.
        expected: The architecture of a preset, believed where a foreign checkpoint says nothing.

    Raises:
        UserError: There is no such folder, or it is none of these, or it is incomplete.
    """
    try:
        path = checkpoint_at(path)
        source = _find(path, vocab_divisor, expected)
        changed = (
            manifest.find_changed_texts(source.path, source.manifest) if source.manifest else ()
        )
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    if not changed:
        return source
    told = f"{source.description}; changed since they were written: {', '.join(changed)}"
    return replace(source, description=told)


def _find(path: Path, vocab_divisor: int, expected: Model | None) -> Source:
    if not path.exists():
        raise explain_dangling(path) if path.is_symlink() else UserError(f"{path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{path}: a folder was expected, this is a file")
    for name in ("config.json", LATEST, METADATA, zero_files.LATEST):
        if (path / name).is_symlink() and not (path / name).exists():
            raise explain_dangling(path / name)
    if (path / "checkpoints").is_dir() and not hf_files.has_weights(path):
        if not (path / "checkpoints" / LATEST).is_file():
            raise UserError(f"{path}: this run has no checkpoint yet")
        return _find(path / "checkpoints", vocab_divisor, expected)
    if (path / LATEST).is_file():
        latest = _latest(path)
        if _has_config(path) and hf_files.has_weights(path):
            raise UserError(
                f"{path}: two models are in it: one of Hugging Face, and {latest.name}, which "
                f"{LATEST} names",
                f"for the second one give {latest}; for the first one move {LATEST} elsewhere",
            )
        # DeepSpeed's checkpoints are Hugging Face folders with its training state in a sub-folder.
        is_hf = _has_config(latest) and not is_megatron(latest)
        return _hf(latest, vocab_divisor) if is_hf else _megatron(latest, expected)
    if is_megatron(path):
        return _megatron(path, expected)
    if (path / "config.json").is_file() and hf_files.has_weights(path):
        return _hf(path, vocab_divisor)
    if (tag := zero.find(path)) is not None:
        return _zero(path, tag, vocab_divisor)
    if (path / "config.json").is_file():
        return _hf(path, vocab_divisor)
    raise _no_model(path)


def _no_model(path: Path) -> UserError:
    """Explain what a folder is that holds no model."""
    if (path / "snapshots").is_dir() and any((path / name).is_dir() for name in ("refs", "blobs")):
        return _hub_cache(path)
    if (path / hf_files.ADAPTERS).is_file():
        return UserError(
            f"{path}: adapters of PEFT's, without the model that they belong to",
            "load both with PEFT, call merge_and_unload(), and save the result",
        )
    return UserError(
        f"{path}: not a model: neither config.json (Hugging Face) nor {LATEST}, {METADATA} or "
        "mp_rank_00 (Megatron) is in it",
        _nearby(path),
    )


def _hub_cache(path: Path) -> UserError:
    """Explain which folder to give in place of the one under which the hub caches a model."""
    main = path / "refs" / "main"
    name = _first_words(main) if main.is_file() else ""
    snapshots = sorted(child for child in (path / "snapshots").iterdir() if child.is_dir())
    meant = [child for child in snapshots if child.name == name] or snapshots
    return UserError(
        f"{path}: the hub's cache of a model, which keeps {len(snapshots)} of its versions",
        f"give the folder of a version: --load {meant[-1]}"
        if meant
        else "none was downloaded completely: download the model again",
    )


def is_megatron(path: Path) -> bool:
    """Tell whether a folder is one checkpoint of Megatron's, of any format, or ours of adapters."""
    if (path / manifest.NAME).is_file() and not (path / "config.json").is_file():
        return True
    return (path / METADATA).is_file() or rank_files.has_ranks(path)


def _first_words(file: Path) -> str:
    """Read the first 4096 bytes of a file that should have one line."""
    with user_files.opened(file) as stream:
        return stream.read(4096).decode("utf-8", "replace").strip()


def _latest(path: Path) -> Path:
    """Find the checkpoint that a folder of checkpoints points to."""
    text = _first_words(path / LATEST)
    if text != "release" and not re.fullmatch(r"[0-9]{1,15}", text):
        raise UserError(
            f"{path / LATEST}: {text[:40]!r} is neither an iteration nor `release`",
            "write the number of a folder iter_NNNNNNN beside it into the file",
        )
    folder = path / (text if text == "release" else f"iter_{int(text):07d}")
    if not folder.is_dir():
        raise UserError(
            f"{path / LATEST} names {folder.name}, which is not there",
            f"a Hugging Face model is there: if that one is meant, remove {LATEST}"
            if _has_config(path) and hf_files.has_weights(path)
            else "put the folder back, or write the number of another one into the file",
        )
    return folder


# ---- Hugging Face's names ----


def _hf(path: Path, vocab_divisor: int) -> Source:
    folder = hf.read(path, vocab_divisor=vocab_divisor)
    found = manifest.read(path) if (path / manifest.NAME).is_file() else None
    if found and (changes := differences(found.model, folder.model)):
        raise UserError(
            f"{path}: {manifest.NAME} and config.json describe different models:\n  "
            + "\n  ".join(changes),
            f"config.json is damaged or was edited: copy the folder again, or remove "
            f"{manifest.NAME} if the change was meant",
        )
    return _open_hf("hf", path, folder, path, found, "Hugging Face")


def _zero(path: Path, tag: Path, vocab_divisor: int) -> Source:
    config = next((p for p in (path, tag.parent) if (p / "config.json").is_file()), None)
    if config is None:
        raise UserError(
            f"{tag.parent}: a DeepSpeed checkpoint without the model's config.json",
            "copy config.json and the tokenizer's files of the model it was trained from there",
        )
    content = read_json(config / "config.json")
    where = str(config / "config.json")
    model = model_from_hf(content, where=where, vocab_divisor=vocab_divisor)
    stored = zero.read(tag)
    folder = hf.normalise(tag, content, model, stored.tensors)
    text = f"DeepSpeed ZeRO-{stored.stage} of {stored.num_ranks} ranks,"
    source = _open_hf("zero", tag, folder, config, None, text)
    unchecked = None if stored.is_order_told else _NO_ORDER.format(stored.num_ranks)
    return replace(source, unchecked=unchecked)


def _open_hf(
    kind: Kind,
    path: Path,
    folder: hf.HFFolder,
    auxiliary: Path,
    found: Manifest | None,
    text: str,
) -> Source:
    model = folder.model
    files = f", from {folder.files}" if folder.files else ""
    return Source(
        kind=kind,
        path=path,
        model=model,
        head=folder.head,
        auxiliary=auxiliary,
        manifest=found,
        hf_prefix=folder.prefix,
        tensors=hf.merge_tensors(folder),
        description=f"{path}: {text} {_about(model, folder.head, folder.tensors)}{files}",
    )


# ---- Megatron's names ----


def _megatron(path: Path, expected: Model | None) -> Source:
    found = manifest.read(path) if (path / manifest.NAME).is_file() else None
    if found is not None and found.adapted is not None and found.format == "hf":
        tensors = peft.read(path, found.model, found.adapted.lora, found.head)
        return _open_adapted("hf", path, found, found.adapted, tensors)
    if rank_files.has_ranks(path):
        ranks = legacy.read(path, expected)
        text = (
            f"Megatron {'legacy' if ranks.names == 'legacy' else 'Core by rank'}, TP {ranks.tp}, "
            f"PP {ranks.pp}, version {ranks.version:g},"
        )
        source = _open_megatron("legacy", path, ranks.tensors, ranks.args, found, expected, text)
        is_told = ranks.is_order_told or found is not None
        unchecked = None if is_told else _NO_ORDER.format(ranks.tp * ranks.pp)
        return replace(source, unchecked=unchecked)
    if not (path / METADATA).is_file():
        raise UserError(
            f"{path}: {METADATA} is missing"
            + (f", though {manifest.NAME} lists it" if found else ""),
            "copy the checkpoint again, or use an older one",
        )
    tensors, args = mcore.read(path), None
    if found is not None and found.adapted is not None:
        return _open_adapted("mcore", path, found, found.adapted, tensors)
    if found is None:
        has_common = (path / mcore.COMMON).exists() or expected is None
        common = torch_file.read(path / mcore.COMMON) if has_common else None
        args = common.get("args") if isinstance(common, dict) else None
        if args is None and expected is None:
            raise UserError(
                f"{path}: neither {manifest.NAME} nor arguments in {mcore.COMMON} tell the "
                "architecture",
                "tell it with --preset FILE, the preset of this model",
            )
    source = _open_megatron("mcore", path, tensors, args, found, expected, "Megatron-Core")
    parts = len([*path.glob("*.distcp")])
    unchecked = _NO_ORDER.format(parts) if found is None and parts > 1 else None
    return replace(source, unchecked=unchecked)


def _open_adapted(
    kind: Kind,
    path: Path,
    found: Manifest,
    about: manifest.Adapted,
    stored: Mapping[str, LazyTensor],
) -> Source:
    """Open a checkpoint with adapters and its base, as one model."""
    folder = base_folder(path, about.base)
    base = find(folder, vocab_divisor=found.model.vocab_divisor, expected=found.model)
    check_base(path, about.base, base)
    shapes = adapter_shapes(found.model, about.lora)
    hf.check_names(
        path, {name: stored[name] for name in shapes if name in stored}, shapes, base.model
    )
    tensors = merge_adapters(found, base, stored)
    text = {"mcore": "Megatron-Core", "hf": "PEFT"}[kind]
    return Source(
        kind=kind,
        path=path,
        model=found.model,
        head=found.head,
        auxiliary=_find_auxiliary_files(path),
        manifest=found,
        hf_prefix=found.hf_prefix,
        tensors=tensors,
        description=f"{path}: {text} {_about(found.model, found.head, tensors)}, iteration "
        f"{found.iteration}, adapters of rank {about.lora.rank} merged into {base.path}",
        adapted=Adapters(about.lora, base, stored),
    )


def _open_megatron(
    kind: Kind,
    path: Path,
    stored: Mapping[str, LazyTensor],
    args: object,
    found: Manifest | None,
    expected: Model | None,
    text: str,
) -> Source:
    model = found.model if found else model_from(args, stored, where=str(path), expected=expected)
    head = head_of(stored)
    hf.check_depth(path, stored, model)
    rows = weight_map(model, head)
    needed = stored
    if head != "lm" or model.tie_embeddings:
        needed = {name: tensor for name, tensor in stored.items() if name != "output_layer.weight"}
    shapes = {name: full_shape(row, model) for name, row in rows.items()}
    tensors = {
        name: _cut_padding(tensor, model)
        if name in rows and isinstance(rows[name].layout, Vocabulary)
        else tensor
        for name, tensor in needed.items()
    }
    hf.check_names(path, tensors, shapes, model)
    if found and found.head != head:
        raise UserError(f"{path}: {manifest.NAME} tells of a head {found.head!r}, found {head!r}")
    auxiliary = next((p for p in (path / HF_FOLDER, path, path.parent) if _has_config(p)), None)
    if auxiliary == path / HF_FOLDER:
        auxiliary = _find_auxiliary_files(path)
    step = f", iteration {found.iteration}" if found and found.iteration else ""
    return Source(
        kind=kind,
        path=path,
        model=model,
        head=head,
        auxiliary=auxiliary,
        manifest=found,
        hf_prefix=found.hf_prefix if found else FAMILIES[model.family].hf_prefix,
        tensors={name: tensors[name] for name in rows},
        description=f"{path}: {text} {_about(model, head, tensors)}{step}",
    )


def _find_auxiliary_files(path: Path) -> Path:
    """Return a checkpoint's folder of Hugging Face files; refuse links that lead out of it."""
    refuse_links_out(path / HF_FOLDER, path)
    return path / HF_FOLDER


def _cut_padding(tensor: LazyTensor, model: Model) -> LazyTensor:
    """Keep the rows that are tokens; if there are too few, the comparison of shapes finds it."""
    rows = model.vocab_size
    if not tensor.shape or tensor.shape[0] <= rows:
        return tensor
    return tensor.map((rows, *tensor.shape[1:]), lambda table: table[:rows])


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _about(model: Model, head: Head, tensors: Mapping[str, LazyTensor]) -> str:
    dtypes = sorted({tensor.dtype.name for tensor in tensors.values()})
    what = {"lm": "", "linear": " reward model", "pooler": " reward model (two-layer head)"}[head]
    return f"{model.family}{what}, {model.num_layers} layers, {' and '.join(dtypes)}"


def _nearby(path: Path) -> str | None:
    """Return a hint that names a model one folder below, where users often mean it, or None."""
    for child in sorted(path.iterdir()):
        if child.is_dir() and (
            _has_config(child) or (child / LATEST).is_file() or is_megatron(child)
        ):
            return f"did you mean {child}?"
    return None
