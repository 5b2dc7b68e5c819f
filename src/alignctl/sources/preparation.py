"""A data set to a folder for each kind of stage, each with training and held-out rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl import atomic
from alignctl.corpus.manifest import file_record
from alignctl.corpus.writers import LineWriter
from alignctl.data.documents import Unread
from alignctl.data.store import unread_notes
from alignctl.errors import UserError
from alignctl.sources.download import files_of, license_of, rows_of
from alignctl.sources.formats import DROPPED, FORMATS, Format, Kind, Made, Name, check_keys


@dataclass(frozen=True)
class Options:
    """What is prepared, and how.

    Attributes:
        name: The data set.
        paths: Files and folders, as downloaded.
        folder: The folder to write.
        dev_fraction: Share of the prompts held out, where the download holds out none.
        license: The licence of the rows; None: what the download's data card says.
    """

    name: Name
    paths: tuple[Path, ...]
    folder: Path
    dev_fraction: float = 0.05
    license: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of the rows.

    Attributes:
        rows: Rows read.
        dropped: Rows left out, by the keys of `DROPPED`.
        train: Rows written to each training file.
        dev: Rows written to each held-out file.
        preview: The first training row of each kind.
        license: The licence, or None.
        unread: How many rows have each key that nothing reads, by file.
    """

    rows: int
    dropped: dict[str, int]
    train: int
    dev: int
    preview: dict[Kind, dict[str, object]]
    license: str | None
    unread: dict[str, dict[str, int]]

    def describe(self) -> str:
        """Say in one line what became of the rows, and in others which keys were not read."""
        words = [f"{self.rows:,} rows"]
        words += [
            f"{number:,} dropped: {DROPPED[reason]}"
            for reason, number in self.dropped.items()
            if number
        ]
        line = f"{', '.join(words)}; {self.train:,} to train on, {self.dev:,} held out"
        return "\n".join([line, *unread_notes(self.unread)])


def prepare(options: Options, on_wait: atomic.OnWait | None = None) -> Outcome:
    """Write `KIND/train.jsonl` and `KIND/dev.jsonl` for each kind, and `manifest.json`.

    Held out are the rows of the download's test or validation files. Where it has none, a hash of
    its prompt decides for each row, so that these are always the same ones, whatever else is in the
    files, and that rows which ask the same are on one side. `on_wait` is what `atomic.locked` is
    given.

    Raises:
        UserError: For whatever is wrong with files or rows. No folder is left behind.
    """
    form = FORMATS[options.name]
    train, dev = files_of(options.paths, "train"), files_of(options.paths, "validation")
    if not train:
        names = ", ".join(str(path) for path in options.paths)
        raise UserError(f"{names}: no file of training rows", "give the folder as downloaded")
    counts: Counter[str] = Counter()
    unread = Unread()
    preview: dict[Kind, dict[str, object]] = {}
    with atomic.new_folder(options.folder, on_wait) as partial:
        writers = _Writers(partial, form)
        with writers:
            seen: set[bytes] = set()
            for made, is_dev in _made(options, form, train, dev, counts, unread, seen):
                side = "dev" if is_dev else "train"
                counts[side] += 1
                writers.write(side, made)
                if not preview and not is_dev:
                    preview.update(made.rows)
        if not counts["train"]:
            raise UserError(f"{options.folder}: no row to train on: {counts['rows']} rows read")
        outcome = Outcome(
            rows=counts["rows"],
            dropped={reason: counts[reason] for reason in DROPPED},
            train=counts["train"],
            dev=counts["dev"],
            preview=preview,
            license=options.license or license_of(options.paths),
            unread=unread.counts(),
        )
        _write_manifest(options, outcome, writers, partial)
    return outcome


def _made(
    options: Options,
    form: Format,
    train: Sequence[Path],
    dev: Sequence[Path],
    counts: Counter[str],
    unread: Unread,
    seen: set[bytes],
) -> Iterator[tuple[Made, bool]]:
    """Yield every row that is not left out, and whether it is held out; held-out rows come first.

    So of a row that is on both sides of a download, the one to train on is left out.
    """
    for files, is_dev in ((dev, True), (train, False)):
        for number, row in enumerate(rows_of(files)):
            if not number:
                check_keys(row, options.name)
            counts["rows"] += 1
            unread.add(row, form.unread(row))
            made = form.convert(row)
            if isinstance(made, str):
                counts[made] += 1
                continue
            digest = _digest(json.dumps(made.rows, sort_keys=True))
            if digest in seen:
                counts["repeated"] += 1
                continue
            seen.add(digest)
            is_held_out = not dev and _share(made.prompt) < options.dev_fraction
            yield made, is_dev or is_held_out


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def _share(prompt: str) -> float:
    """Compute a number in [0, 1) that looks random and depends on the text alone."""
    return int.from_bytes(_digest(prompt.strip()), "little") / 2**64


class _Writers:
    """The files of each kind and side."""

    def __init__(self, folder: Path, form: Format) -> None:
        self._files: dict[tuple[Kind, str], LineWriter] = {}
        self._folder = folder
        self._kinds = form.kinds
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for kind in self._kinds:
            (self._folder / kind).mkdir()
            for side in ("train", "dev"):
                writer = LineWriter(self._folder / kind / f"{side}.jsonl")
                self._files[kind, side] = self._stack.enter_context(writer)

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for (kind, side), writer in self._files.items():
            if not writer.lines:
                (self._folder / kind / f"{side}.jsonl").unlink()

    def write(self, side: str, made: Made) -> None:
        for kind, row in made.rows.items():
            self._files[kind, side].write_row(row)

    def records(self) -> Iterator[dict[str, Any]]:
        for (kind, side), writer in self._files.items():
            if writer.lines:
                name = f"{kind}/{side}.jsonl"
                yield {**writer.record().model_dump(), "name": name, "rows": writer.lines}


def recipe(options: Options) -> dict[str, Any]:
    """Collect all that decides what is written."""
    files = [*files_of(options.paths, "train"), *files_of(options.paths, "validation")]
    return {
        "format": 1,
        "dataset": options.name,
        "license": options.license or license_of(options.paths),
        "dev_fraction": options.dev_fraction,
        "source": [file_record(file).model_dump() for file in files],
    }


def _write_manifest(options: Options, outcome: Outcome, writers: _Writers, partial: Path) -> None:
    manifest = {
        **recipe(options),
        "rows": outcome.rows,
        "dropped": outcome.dropped,
        "files": list(writers.records()),
    }
    atomic.write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
