"""The rows of a data set on the Hugging Face hub, streamed into files of JSON lines."""

import datetime
import decimal
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignctl.config.hub import HubName
from alignctl.corpus.writers import LineWriter
from alignctl.data.rows.folders import HELD_OUT
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.reporting.progress.rows import RowsProgress


def write_rows(name: HubName, commit: str, folder: Path) -> dict[str, int]:
    """Write the training rows, and those held out, into `SPLIT.jsonl.zst` each.

    Args:
        name: The data set, which configuration of it, and perhaps which split alone.
        commit: The commit to read.
        folder: An empty folder.

    Returns:
        Rows by split.

    Raises:
        UserError: There is no such configuration or split, or a value is no text.
        RunError: The connection was lost.
    """
    counts = {}
    with TemporaryDirectory(prefix="alignctl-hub-") as scratch:
        splits = _open(name, commit, scratch)
        for role, split in _choose(name, list(splits)).items():
            counts[split] = _write(name, split, splits[split], folder / f"{role}.jsonl.zst")
    return counts


def _open(name: HubName, commit: str, scratch: str) -> dict[str, Any]:
    """Open the splits of a configuration as streams; images and the like stay what they are."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it may have been imported before
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    # Of a bare name a folder here, or what was cached of another commit, could be taken instead.
    source, wanted = f"hf://datasets/{name.repo}", {"revision": commit, "cache_dir": scratch}
    with _explained(name):
        try:
            splits = datasets.load_dataset(source, name.config, streaming=True, **wanted)
        except ValueError as error:
            configs = datasets.get_dataset_config_names(source, **wanted)
            if name.config in configs or (name.config is None and len(configs) == 1):
                raise
            missing = f"no configuration {name.config!r}" if name.config else "several of them"
            example = HubName(name.repo, configs[0], revision=name.revision)
            raise UserError(
                f"{name}: {missing}; its configurations are {', '.join(configs)}",
                f"name one after a colon: {example}",
            ) from error
    return {
        str(split): stream.decode(False) if stream.features else stream
        for split, stream in splits.items()
    }


def _choose(name: HubName, splits: list[str]) -> dict[str, str]:
    """Choose the splits to fetch: those of the roles that files are named after."""
    if name.split is not None and name.split in splits:
        return {"train": name.split}
    listed = ", ".join(splits)
    if name.split is not None:
        raise UserError(f"{name}: no split {name.split!r}; its splits are {listed}")
    if "train" not in splits and len(splits) > 1:
        example = HubName(name.repo, name.config, splits[0], name.revision)
        raise UserError(
            f"{name}: no split of it is called train; its splits are {listed}",
            f"name one after a second colon: {example}",
        )
    chosen = [split for split in HELD_OUT if split in splits][:1]
    if "train" in splits or not chosen:
        return {"train": "train" if "train" in splits else splits[0]} | {
            split: split for split in chosen
        }
    return {chosen[0]: chosen[0]}


def _write(name: HubName, split: str, stream: Any, file: Path) -> int:
    known = (stream.info.splits or {}).get(split)
    total = (known and known.num_examples) or None
    progress = RowsProgress(f"fetching {name}, {split}")
    with LineWriter(file) as writer:
        for row in _rows(name, stream):
            where = f"{name}: row {writer.lines + 1} of {split}"
            writer.write_line(_as_json(row, where))
            progress(writer.lines, total)
    if not writer.lines:
        raise UserError(f"{name}: no row in its split {split}")
    return writer.lines


def _rows(name: HubName, stream: Any) -> Iterator[dict[str, Any]]:
    with _explained(name):
        yield from stream


def _as_json(row: dict[str, Any], where: str) -> bytes:
    """Write a row as JSON; dates and decimal numbers become text.

    Raises:
        UserError: A column holds something else, such as an image; it is named.
    """
    try:
        return json.dumps(row, ensure_ascii=False, default=_as_text).encode("utf-8")
    except (TypeError, ValueError):
        for column, value in row.items():
            try:
                json.dumps(value, default=_as_text, ensure_ascii=False).encode("utf-8")
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{where}: column {column} holds {error}, where text or numbers are expected",
                    "learning is from text: choose another configuration, or a data set of text",
                ) from error
        raise


def _as_text(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn whatever the library raises, whose kinds are many, into one message."""
    try:
        yield
    except AlignctlError:
        raise
    except Exception as error:
        if is_network(error):
            raise RunError(
                f"{name}: the Hugging Face hub stopped answering: {reason_of(error)}",
                "start the same command again",
            ) from error
        raise UserError(
            f"{name}: `datasets` cannot read it: {reason_of(error)}",
            "download it (hf download --repo-type dataset), and give a file of its rows",
        ) from error


def is_network(error: BaseException) -> bool:
    """Tell whether an error comes from a connection, or from a server that refuses."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return any(isinstance(each, httpx.HTTPError | ConnectionError) for each in _causes(error))


def reason_of(error: BaseException) -> str:
    """Write the cause of an error on one line.

    What follows the ? of an address is left out: it may be a secret.
    """
    *_, cause = _causes(error)
    text = " ".join(str(cause).split()) or type(cause).__name__
    return re.sub(r"\?[^\s'\")>]*", "", text)[:300]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
