"""The files beside a model's weights (config, tokenizer ...), which travel with it unchanged."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignctl import user_files
from alignctl.data.hf_settings import read_settings
from alignctl.errors import UserError

_TOKENIZER = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|chat_template|vocab|merges|sentencepiece|spiece)"
    r"[^/]*\.(json|jinja|model|txt)|[^/]+\.tiktoken|additional_chat_templates/[^/]+\.jinja"
)
"""Files that make up a tokenizer; another tokenizer replaces all of them."""

_TEMPLATES = "additional_chat_templates"
"""A tokenizer's chat templates that have names; no other folder belongs to a model."""

_TEXTS = r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY|README|MODEL_CARD|Responsible-Use)[^/]*"

_COMPANION = re.compile(
    rf"config\.json|generation_config\.json|{_TOKENIZER.pattern}|{_TEXTS}", re.IGNORECASE
)
"""All that belongs to a Hugging Face model beside its weights. What else lies there belongs to
whatever program put it there: trackers, training states, logs."""

_EDITED = re.compile(
    r"(config|generation_config|tokenizer_config|special_tokens_map)\.json|chat_template[^/]*"
    rf"|additional_chat_templates/[^/]*|{_TEXTS}",
    re.IGNORECASE,
)
"""What people change by hand. A config.json of another architecture is refused when it is read."""


def is_auxiliary(name: str) -> bool:
    """Tell whether a file of this name belongs to a Hugging Face model, and travels with it."""
    return _COMPANION.fullmatch(name) is not None


def may_be_edited(name: str) -> bool:
    """Tell whether an auxiliary file of this name is one that people change by hand."""
    return is_auxiliary(name) and _EDITED.fullmatch(name) is not None


def code_beside(folder: Path | None) -> list[str]:
    """List the Python files beside a model by name: they are neither run nor taken along."""
    return sorted(file.name for file in folder.glob("*.py")) if folder else []


def refuse_links_out(folder: Path, checkpoint: Path) -> None:
    """Refuse links in a folder of a checkpoint that lead out of the checkpoint.

    Raises:
        UserError: The folder, or something in it, is a link to what is outside of the checkpoint.
    """
    root = checkpoint.resolve()
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink() and not path.exists():  # also a link to itself, which has no end
            raise explain_dangling(path)
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(
                f"{path}: a link out of the checkpoint, to {path.readlink()}: it is not followed",
                "put the file itself there, or remove the link",
            )


_SETTINGS_BYTES = 1 << 20
"""Largest file of settings: what is larger is a vocabulary, which takes long to read."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is missing or holds something else is the user's error."""
    if path.is_symlink() and not path.exists():
        raise explain_dangling(path)
    return user_files.read_json(path)


def explain_missing(path: Path, error: OSError) -> UserError:
    """Explain what is wrong with a file that could not be opened."""
    if path.is_symlink() and not path.exists():
        return explain_dangling(path)
    return UserError(f"{path}: cannot be read: {error.strerror}")


def explain_dangling(path: Path) -> UserError:
    """Explain what is wrong with a link to something that is not there."""
    return UserError(
        f"{path}: a link to {path.readlink()}, which is not there",
        "the folder was moved or copied without what its links mean: copy it again with cp -rL",
    )


def copy_auxiliary_files(
    source: Path | None,
    target: Path,
    *,
    tokenizer: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Copy the files that belong to a model, without its weights.

    Args:
        source: Folder of a model; None for one that has nothing beside it.
        target: Folder to copy to; made if need be.
        tokenizer: Folder (or a file in it) whose tokenizer takes the place of the model's own.
        config: What config.json says where the source has none. Where it has one, this one's
            `vocab_size` is right: it counts the rows of the weights.
    """
    if tokenizer is not None and tokenizer.is_file():
        tokenizer = tokenizer.parent
    target.mkdir(parents=True, exist_ok=True)
    if source is not None:
        for name in _names(source):
            is_replaced = tokenizer is not None and _TOKENIZER.fullmatch(name)
            if is_auxiliary(name) and not is_replaced:
                _copy(source / name, target / name)
    if tokenizer is not None:
        for name in filter(_TOKENIZER.fullmatch, _names(tokenizer)):
            _copy(tokenizer / name, target / name)
    if config is not None:
        _settle_config(target, config)


def _names(folder: Path) -> Iterator[str]:
    """Yield the files of a folder by name, and those among its named chat templates.

    Raises:
        UserError: A template lies outside the folder.
    """
    for file in sorted(folder.iterdir()):
        if not file.is_dir():
            yield file.name
        elif file.suffix == ".json" and is_auxiliary(file.name):
            raise UserError(f"{file}: a folder, where a file is expected", "remove or rename it")
    templates = folder / _TEMPLATES
    for file in sorted(templates.iterdir()) if templates.is_dir() else []:
        if not file.is_dir() and is_auxiliary(name := f"{_TEMPLATES}/{file.name}"):
            _check_inside(folder, file)
            yield name


def _check_inside(folder: Path, file: Path) -> None:
    """Refuse a link out of a model's folder, except to the files of the hub's cache."""
    whole = folder.resolve()
    roots = [whole, *([whole.parents[1] / "blobs"] if whole.parent.name == "snapshots" else [])]
    if not any(file.resolve().is_relative_to(root) for root in roots):
        raise UserError(
            f"{file}: leads out of the model's folder, to {file.resolve()}",
            "put the template itself there, or remove the link",
        )


def _settle_config(target: Path, config: Mapping[str, Any]) -> None:
    file = target / "config.json"
    if not file.is_file():
        write_config(target, config)
    elif (old := read_json(file)).get("vocab_size", config["vocab_size"]) != config["vocab_size"]:
        write_config(target, {**old, "vocab_size": config["vocab_size"]})


def _copy(file: Path, target: Path) -> None:
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: not a regular file", "put the file itself there, or remove this")
    size = file.stat().st_size if file.is_file() else 0
    if size > user_files.MOST_BYTES:
        raise UserError(
            f"{file}: {size:,} bytes, and no file beside a model's weights is larger than "
            f"{user_files.MOST_BYTES:,}",
            "remove it, or put the file itself there",
        )
    if file.suffix == ".json" and file.is_file() and size <= _SETTINGS_BYTES:
        read_settings(file)  # what transformers could not read is not passed on
    try:
        source = user_files.opened(file)
    except OSError as error:
        raise explain_missing(file, error) from error
    target.parent.mkdir(exist_ok=True)
    with source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def write_config(folder: Path, config: Mapping[str, Any], name: str = "config.json") -> None:
    """Write a model's config.json, or its tokenizer's, in transformers' own form."""
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / name).write_text(text + "\n", encoding="utf-8")
