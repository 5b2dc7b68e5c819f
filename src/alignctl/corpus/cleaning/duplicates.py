"""Documents that say what an earlier one says: the same text, or nearly the same words.

Nearly the same is a Jaccard similarity of their runs of five words (MinHash of the `rensa`
library; in scripts without spaces, of five characters). Signatures lie on the disk, and one band of
them at a time is in memory, so that a document costs some 100 bytes of memory whatever its length.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_HASHES = 128
"""Numbers in a signature: the similarity is estimated to within about 0.04."""

# Thai, Lao, Burmese, Khmer, kana, Han: written without spaces, so that a character is a word.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_RUN = 5
_SEED = 1
_ROWS_AT_ONCE = 1 << 14


def text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Hash each text `[N]`."""
    digests = (hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.dtype("<u8")).astype(np.uint64)


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Compute the MinHash signature of each text `[N, NUM_HASHES]`."""
    from rensa import RMinHash

    if not texts:
        return np.empty((0, NUM_HASHES), np.uint32)
    runs = [_runs(text) for text in texts]
    matrix = RMinHash.digest_matrix_from_token_sets(runs, num_perm=NUM_HASHES, seed=_SEED)
    return np.asarray(matrix.to_rows(), np.uint32)


def _runs(text: str) -> list[str]:
    words = _WORD.findall(text.casefold()) or [text]
    if len(words) <= _RUN:
        return [" ".join(words)]
    return [" ".join(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]


def rows_per_band(threshold: float) -> int:
    """Compute how many numbers of a signature must agree for two documents to be compared.

    With r rows in each of b = NUM_HASHES / r bands, a pair of similarity s is found with
    probability 1 - (1 - s^r)^b. The result is the largest r, a power of two, for which that is at
    least 99 % at the threshold.
    """
    rows = 1
    while rows < NUM_HASHES:
        wider = 2 * rows
        if 1 - (1 - threshold**wider) ** (NUM_HASHES // wider) < 0.99:
            break
        rows = wider
    return rows


def band_hashes(signature: NDArray[np.uint32], rows: int) -> NDArray[np.uint64]:
    """Compute one number for each band of each signature `[NUM_HASHES / rows, N]`."""
    odd = np.random.default_rng(_SEED).integers(1 << 63, size=rows, dtype=np.uint64) * 2 + 1
    bands = signature.reshape(len(signature), NUM_HASHES // rows, rows).astype(np.uint64)
    mixed: NDArray[np.uint64] = (bands * odd).sum(axis=2, dtype=np.uint64)
    return np.ascontiguousarray(mixed.T)


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark the documents for which an earlier one has the same hash `[N]`."""
    repeated = np.zeros(len(hashes), np.bool_)
    members, _ = _groups(hashes, np.arange(len(hashes)))
    repeated[members] = True
    return repeated


def near_repeats(
    bands: Iterator[NDArray[np.uint64]],
    signatures_of: Callable[[NDArray[np.int64]], NDArray[np.uint32]],
    threshold: float,
    dropped: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Mark documents nearly the same as an earlier one `[N]`; of a chain of such pairs one stays.

    Args:
        bands: For each band, the number of each document `[N]`.
        signatures_of: Gives the signatures of some documents `[n] -> [n, NUM_HASHES]`.
        threshold: The similarity from which on a document is left out.
        dropped: Documents that are left out already `[N]`.
    """
    near = np.zeros(len(dropped), np.bool_)
    for band in bands:
        members, leaders = _groups(band, np.flatnonzero(~(dropped | near)))
        for start in range(0, len(members), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            both = signatures_of(members[part]) == signatures_of(leaders[part])
            near[members[part][both.mean(axis=1) >= threshold]] = True
    return near


def _groups(
    values: NDArray[np.uint64], documents: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find documents whose value an earlier one has too, and the first one that has it."""
    if not len(documents):
        return documents, documents
    order = documents[np.argsort(values[documents], kind="stable")]
    ordered = values[order]
    is_repeat = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    del ordered  # as long as the corpus, as all that is made here
    first = np.arange(len(order))
    first[is_repeat] = 0
    np.maximum.accumulate(first, out=first)
    return order[is_repeat], order[first[is_repeat]]
