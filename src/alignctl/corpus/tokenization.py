"""Text to Megatron's indexed dataset, by several processes, to the same bytes however it is run.

Blocks of text are tokenised by workers and appended in the order of the text, so neither the number
of workers nor an interruption shows in the result. The three files get their names at the end, the
manifest last; whenever a run is killed, the same command goes on, or finds that all is done.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.corpus.blocks import Block, read_blocks
from alignctl.corpus.indexed import Dtype, dtype_for, write_index
from alignctl.corpus.journal import Journal
from alignctl.corpus.manifest import (
    CorpusManifest,
    FileRecord,
    TokenizerIdentity,
    file_record,
    name_beside,
    read_manifest,
    verify_files,
    write_manifest,
)
from alignctl.corpus.pool import map_in_order
from alignctl.data.tokenizer import Tokenizer, explain_panic, load_tokenizer
from alignctl.errors import AlignctlError, RunError, UserError

_FORMAT = 1
_SECONDS_BETWEEN_COMMITS = 2.0


@dataclass(frozen=True)
class Options:
    """What is tokenised, and how.

    Attributes:
        files: Files of text, whose documents follow each other in this order.
        prefix: NAME of the dataset to write.
        tokenizer: Folder of the tokenizer.
        key: The key of the text in each row.
        append_eod: Whether each document ends with the tokenizer's EOS.
        workers: Processes.
    """

    files: tuple[Path, ...]
    prefix: Path
    tokenizer: Path
    key: str = "text"
    append_eod: bool = False
    workers: int = 1


@dataclass(frozen=True)
class Counts:
    """What was done so far.

    Attributes:
        blocks: Blocks of text.
        consumed: Bytes of the files, as they lie on the disk.
        text_bytes: Bytes of text, in UTF-8, without the JSON around it.
        documents: Documents written.
        empty: Documents left out because they have no token.
        tokens: Tokens written.
        max_token_id: The highest of them, or -1.
    """

    blocks: int = 0
    consumed: int = 0
    text_bytes: int = 0
    documents: int = 0
    empty: int = 0
    tokens: int = 0
    max_token_id: int = -1


OnProgress = Callable[[Counts], None]


def tokenize(
    options: Options,
    on_progress: OnProgress | None = None,
    on_resume: OnProgress | None = None,
    on_wait: atomic.OnWait | None = None,
) -> CorpusManifest:
    """Write NAME.bin, NAME.idx and NAME.json.

    Each document is BOS, where the tokenizer puts one, its text, and EOS, if that is asked for.
    What was done of an interrupted run on the same files is not done again; where all was, the
    manifest is returned at once, and `on_progress` is told nothing.

    Args:
        options: What to do.
        on_progress: Told after every block.
        on_resume: Told what an interrupted run left.
        on_wait: What `atomic.locked` is given.

    Returns:
        The manifest.

    Raises:
        UserError: For whatever is wrong with files or rows.
        RunError: The disk is full, or a worker was killed; what is done is kept for the next run.
    """
    prefix = options.prefix
    tokenizer = load_tokenizer(options.tokenizer)
    source = tuple(file_record(file) for file in options.files)
    key = _key(options, tokenizer, source)
    folder = prefix.with_name(f".{prefix.name}.partial")
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with atomic.locked(prefix, on_wait):
            return _tokenize(options, tokenizer, source, key, folder, on_progress, on_resume)
    except OSError as error:
        raise _not_written(prefix, folder, error) from error


def _tokenize(
    options: Options,
    tokenizer: Tokenizer,
    source: tuple[FileRecord, ...],
    key: str,
    folder: Path,
    on_progress: OnProgress | None,
    on_resume: OnProgress | None,
) -> CorpusManifest:
    """Do the work of `tokenize`, once no other process does it."""
    prefix = options.prefix
    bin_file, idx_file, json_file = (
        name_beside(prefix, suffix) for suffix in (".bin", ".idx", ".json")
    )
    if json_file.exists():
        return _find_finished(prefix, key, folder)
    journal = Journal(folder, key, ("tokens", "lengths"), {"tokens": bin_file})
    if not journal.has_moved("tokens"):
        for file in (bin_file, idx_file):
            _refuse_taken(file)
    with journal:
        counts = Counts(**journal.state)
        if counts.blocks and on_resume is not None:
            on_resume(counts)
        try:
            counts = _append_blocks(options, tokenizer, journal, counts, on_progress)
            if not counts.documents:
                raise UserError(f"{_names(options)}: there is no document with a token in it")
        except UserError:
            # Files that are mended have other hashes: nothing could go on from here.
            journal.remove()
            raise
        manifest = _finish(options, tokenizer, source, journal, counts)
        journal.remove()
    return manifest


def _refuse_taken(file: Path) -> None:
    if file.exists():
        raise UserError(f"{file} exists already", "give another --output, or remove it first")


def _find_finished(prefix: Path, key: str, folder: Path) -> CorpusManifest:
    """Find what the same command has written before.

    Raises:
        UserError: It was another command, or a file is missing or another one.
    """
    manifest = read_manifest(prefix)
    if manifest.recipe != key:
        _refuse_taken(name_beside(prefix, ".json"))
    verify_files(prefix, manifest)
    shutil.rmtree(folder, ignore_errors=True)  # a run that was killed as it removed its own
    return manifest


def _names(options: Options) -> str:
    return ", ".join(str(file) for file in options.files)


def _not_written(prefix: Path, folder: Path, error: OSError) -> AlignctlError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"{prefix}: cannot be written: {error.strerror or error}")
    return RunError(
        f"{prefix}: could not be written: {error.strerror}; what is done is kept in {folder}",
        "free some space and start the same command again: it goes on from there",
    )


def _key(options: Options, tokenizer: Tokenizer, source: tuple[FileRecord, ...]) -> str:
    """Hash all that decides the bytes."""
    state = [
        _FORMAT,
        tokenizer.fingerprint,
        options.key,
        options.append_eod,
        [record.sha256 for record in source],
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _append_blocks(
    options: Options,
    tokenizer: Tokenizer,
    journal: Journal,
    counts: Counts,
    on_progress: OnProgress | None,
) -> Counts:
    setup = _Setup(options.tokenizer, options.key, options.append_eod)
    committed = time.monotonic()
    parts = map_in_order(
        encode_block, _rest(options, counts.blocks), options.workers, begin_encoding, setup
    )
    for part in parts:
        journal.append({"tokens": part.tokens, "lengths": part.lengths})
        counts = part.add_to(counts)
        if on_progress is not None:
            on_progress(counts)
        if time.monotonic() - committed >= _SECONDS_BETWEEN_COMMITS:
            journal.commit(asdict(counts))
            committed = time.monotonic()
    journal.commit(asdict(counts))
    return counts


def _rest(options: Options, done: int) -> Iterator["_Placed"]:
    """Yield the blocks that are not done, each with the bytes of the files before its own."""
    sizes = {file: file.stat().st_size for file in options.files}
    before = dict(zip(options.files, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    for block in islice(read_blocks(options.files), done, None):
        yield _Placed(block, before[block.file])


@dataclass(frozen=True)
class _Placed:
    block: Block
    before: int


@dataclass(frozen=True)
class _Part:
    """What a worker makes of a block: the bytes of its tokens, and of its documents' lengths."""

    tokens: bytes
    lengths: bytes
    consumed: int
    text_bytes: int
    documents: int
    empty: int
    num_tokens: int
    max_token_id: int

    def add_to(self, counts: Counts) -> Counts:
        return replace(
            counts,
            blocks=counts.blocks + 1,
            consumed=max(counts.consumed, self.consumed),
            text_bytes=counts.text_bytes + self.text_bytes,
            documents=counts.documents + self.documents,
            empty=counts.empty + self.empty,
            tokens=counts.tokens + self.num_tokens,
            max_token_id=max(counts.max_token_id, self.max_token_id),
        )


@dataclass(frozen=True)
class _Setup:
    tokenizer: Path
    key: str
    append_eod: bool


class _Encoder:
    """A process's tokenizer, and what it puts around each document."""

    def __init__(self, setup: _Setup) -> None:
        tokenizer = load_tokenizer(setup.tokenizer)
        self.backend, self.folder = tokenizer.backend, tokenizer.folder
        self.key = setup.key
        self.head = [tokenizer.bos_id] if tokenizer.adds_bos else []
        self.tail = [tokenizer.eos_id] if setup.append_eod else []
        self.dtype: Dtype = dtype_for(tokenizer.vocab_size)


_encoders: list[_Encoder] = []


def begin_encoding(setup: _Setup) -> None:
    """Prepare a process for `encode_block`."""
    # Processes, not the tokenizer's threads, share the work: so parsing is shared as well.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoders[:] = [_Encoder(setup)]


def encode_block(placed: _Placed) -> _Part:
    """Tokenise the documents of a block, in a process that is prepared for it."""
    encoder = _encoders[0]
    texts = []
    for document in placed.block.documents(encoder.key):
        if isinstance(document.text, UserError):
            raise document.text
        texts.append(document.text)
    # The ids are those of encode_batch; only the offsets are missing, which nobody reads here.
    with explain_panic(encoder.folder):
        encodings = encoder.backend.encode_batch_fast(texts, add_special_tokens=False)
    documents = [_document(encoding.ids, encoder) for encoding in encodings if len(encoding)]
    tokens: NDArray[np.integer] = np.concatenate([np.empty(0, encoder.dtype), *documents])
    return _Part(
        tokens=tokens.tobytes(),
        lengths=np.asarray([len(document) for document in documents], np.int32).tobytes(),
        consumed=placed.before + placed.block.consumed,
        text_bytes=sum(len(text.encode()) for text in texts),
        documents=len(documents),
        empty=len(texts) - len(documents),
        num_tokens=len(tokens),
        max_token_id=int(tokens.max()) if len(tokens) else -1,
    )


def _document(ids: list[int], encoder: _Encoder) -> NDArray[np.integer]:
    return np.asarray([*encoder.head, *ids, *encoder.tail], encoder.dtype)


def _finish(
    options: Options,
    tokenizer: Tokenizer,
    source: tuple[FileRecord, ...],
    journal: Journal,
    counts: Counts,
) -> CorpusManifest:
    """Write the index, give the files their names, and write the manifest."""
    folder = journal.folder
    dtype = dtype_for(tokenizer.vocab_size)
    write_index(folder / "index", np.memmap(folder / "lengths", np.int32, "r"), dtype)
    atomic.fsync_tree(folder)
    files = {
        "tokens": name_beside(options.prefix, ".bin"),
        "index": name_beside(options.prefix, ".idx"),
    }
    records = [file_record(folder / name, file.name) for name, file in files.items()]
    for name, file in files.items():
        (folder / name).rename(file)
    manifest = CorpusManifest(
        tokenizer=TokenizerIdentity.of(tokenizer),
        bos=tokenizer.bos_id if tokenizer.adds_bos else None,
        eod=tokenizer.eos_id if options.append_eod else None,
        append_eod=options.append_eod,
        documents=counts.documents,
        tokens=counts.tokens,
        max_token_id=counts.max_token_id,
        dtype=dtype,
        files=(records[0], records[1]),
        source=source,
        recipe=journal.key,
    )
    write_manifest(options.prefix, manifest)
    return manifest
