"""An indexed dataset described: its counts, how long its documents are, some of them as text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.corpus.indexed import IndexedTokens
from alignctl.corpus.manifest import (
    CorpusManifest,
    TokenizerIdentity,
    check_tokenizer,
    name_beside,
    read_manifest,
    verify_files,
)
from alignctl.data.tokenizer import Tokenizer
from alignctl.reporting.preview import visible

_BAR = 40
_PERCENTILES = (5, 50, 95)


def describe(prefix: Path, tokenizer: Tokenizer | None, samples: int, verify: bool) -> str:
    """Write the text of `alignctl prepare inspect`.

    Args:
        prefix: NAME of the dataset. Without NAME.json it is one of another program: its counts are
            told, and whose ids they are is not known.
        tokenizer: Decodes samples, if it is given; it must be the one of the manifest.
        samples: Documents to show, spread evenly.
        verify: Whether the checksums of both files are compared.

    Raises:
        UserError: Something is wrong with a file, or the tokenizer is another one.
    """
    has_manifest = name_beside(prefix, ".json").is_file()
    manifest = read_manifest(prefix) if has_manifest else None
    data = IndexedTokens.open(prefix)
    if manifest is not None and tokenizer is not None:
        check_tokenizer(prefix, manifest, TokenizerIdentity.of(tokenizer))
    if manifest is not None and verify:
        verify_files(prefix, manifest)
    lines = [*_head(prefix, data, manifest, verify), "", *describe_lengths(data.document_lengths())]
    for number in np.linspace(0, len(data.boundaries) - 2, samples).round().astype(int).tolist():
        lines += ["", *_sample(data, number, tokenizer)]
    return "\n".join(lines)


def _head(
    prefix: Path, data: IndexedTokens, manifest: CorpusManifest | None, verified: bool
) -> Iterator[str]:
    lengths = data.document_lengths()
    yield f"{prefix}: {len(lengths):,} documents, {len(data.tokens):,} tokens ({data.tokens.dtype})"
    if manifest is None:
        yield "tokenizer: unknown, there is no manifest"
        return
    theirs = manifest.tokenizer
    yield f"tokenizer: {theirs.name}, {theirs.vocab_size:,} tokens, sha256 {theirs.sha256[:12]}"
    start = "no BOS" if manifest.bos is None else f"starts with BOS {manifest.bos}"
    end = "no end-of-document token" if manifest.eod is None else f"ends with EOD {manifest.eod}"
    yield f"document:  {start}, {end}; highest token id {manifest.max_token_id:,}"
    yield f"source:    {', '.join(record.name for record in manifest.source)}"
    if verified:
        yield "checksums: both files are as they were written"


def describe_lengths(lengths: NDArray[np.int64]) -> Iterator[str]:
    """Describe documents by length in tokens `[D]`: percentiles, histogram in powers of two."""
    marks = np.percentile(lengths, _PERCENTILES).astype(int).tolist()
    words = ", ".join(f"{p} %: {mark:,}" for p, mark in zip(_PERCENTILES, marks, strict=True))
    yield f"tokens per document: {words}, longest: {int(lengths.max()):,}"
    buckets = np.frexp(lengths)[1]  # length < 2**bucket
    counts = np.bincount(buckets)
    for bucket in range(int(buckets.min()), len(counts)):
        bar = "#" * round(_BAR * counts[bucket] / counts.max())
        low, high = (1 << bucket) >> 1, (1 << bucket) - 1
        yield f"{low:>10,} - {high:<10,} {counts[bucket]:>10,}  {bar}".rstrip()


def _sample(data: IndexedTokens, number: int, tokenizer: Tokenizer | None) -> Iterator[str]:
    tokens = data.document(number)
    yield f"document {number:,}: {len(tokens):,} tokens"
    shown = tokens[:200].tolist()
    text = visible(tokenizer.decode(shown)) if tokenizer else " ".join(map(str, shown))
    yield text + (" ..." if len(tokens) > len(shown) else "")
