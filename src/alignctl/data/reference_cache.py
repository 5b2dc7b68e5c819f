"""What a frozen reference model makes of the answers, computed once for all runs that ask for it.

A cache file is named by a hash of all that decides its content: the weights, the prepared rows, the
type. `KEY.npy` holds one number per document, `KEY.json` beside it what the hash is made of.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.errors import RunError, UserError

FORMAT = 1
"""Part of the key; raised when the same rows would get other numbers."""

_POINTER = "reference"
"""File in the run folder's data/ that names the cache file of the run."""


@dataclass(frozen=True)
class Cached:
    """What was found.

    Attributes:
        values: Summed log-probability of each document `[D]`, natural log.
        seconds: How long it took to compute them.
    """

    values: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class ReferenceCache:
    """One file of the cache, which may not be there yet."""

    file: Path

    def read(self, num_documents: int) -> Cached | None:
        """Read the numbers of all documents; None when nobody has computed them.

        Raises:
            RunError: The file is damaged, or is not about as many documents.
        """
        if not self.file.exists():
            return None
        try:
            values = np.load(self.file, allow_pickle=False)
            seconds = float(json.loads(self._about.read_text("utf-8"))["seconds"])
        except (OSError, ValueError, KeyError) as error:
            raise self._explain_damage(str(error)) from error
        if values.shape != (num_documents,) or not np.isfinite(values).all():
            raise self._explain_damage(f"{num_documents} finite numbers were expected")
        return Cached(values.astype(np.float64), seconds)

    def write(self, values: NDArray[np.float64], seconds: float) -> None:
        """Write the numbers; a reader sees all of them or no file."""
        content = io.BytesIO()
        np.save(content, values, allow_pickle=False)
        with _explain_errors(self.file.parent):
            about = json.loads(self._about.read_text("utf-8")) | {"seconds": seconds}
            atomic.write_text(self._about, json.dumps(about, indent=2) + "\n")
            atomic.write_bytes(self.file, content.getvalue())

    @property
    def _about(self) -> Path:
        return self.file.with_suffix(".json")

    def _explain_damage(self, why: str) -> RunError:
        return RunError(
            f"{self.file}: not what was cached there: {why}",
            "remove it, and it is computed again",
        )


def choose(data: Path, cache: Path, content: Callable[[], Mapping[str, object]]) -> None:
    """Decide which file of the cache a run reads or writes.

    A run that was started before keeps its file as long as that is there: what decides the content
    of a large model takes minutes to read.

    Args:
        data: The run folder's data/.
        cache: The folder of the cache.
        content: Tells what decides the numbers.

    Raises:
        UserError: The model is not the one that the run was started with.
    """
    pointer = data / _POINTER
    before = Path(pointer.read_text(encoding="utf-8")) if pointer.exists() else None
    if before is not None and before.exists():
        return
    text = json.dumps({"format": FORMAT, **content()}, indent=2, sort_keys=True)
    file = cache / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.npy"
    if before is not None and before.name != file.name:
        raise UserError(
            f"{data.parent}: the reference model has changed since this run was started",
            "put the model back, or start a new run with --output NEW",
        )
    with _explain_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            atomic.write_text(file.with_suffix(".json"), text + "\n")
    atomic.write_text(pointer, str(file))


def chosen(data: Path) -> ReferenceCache:
    """Return the file that `choose` has decided for."""
    return ReferenceCache(Path((data / _POINTER).read_text(encoding="utf-8")))


@contextmanager
def _explain_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{cache}: the reference cannot be kept there: {error.strerror or error}",
            "free some space, or choose another folder: data.reference_cache=FOLDER",
        ) from error
