"""Files that grow, and can be cut back to where everything in them belongs together.

An interrupted run leaves a folder beside its target. `state.json` in it says up to which byte each
file was right, and what had been read by then; the next run with the same key cuts off the rest and
goes on. A run with another key starts anew.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

from alignctl import atomic

_STATE = "state.json"


class Journal:
    """Append-only files in a folder of their own; use it as a context manager.

    Attributes:
        folder: The folder. It stays after a failure; `remove` takes it away.
        key: A hash of all that decides the content of its files.
        state: What `commit` was last given; empty in a new one.
    """

    def __init__(
        self, folder: Path, key: str, names: Sequence[str], targets: Mapping[str, Path]
    ) -> None:
        """Describe the journal; nothing is opened yet.

        Args:
            folder: Where its files lie.
            key: A hash of all that decides their content.
            names: The files.
            targets: Where some of them are moved to in the end. What a run has moved that was
                killed before `remove` is taken back.
        """
        self.folder = folder
        self.state: dict[str, Any] = {}
        self.key = key
        self._names = names
        self._targets = targets
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._stack:
            self._take_back()
            saved = self._read_state()
            self.state = saved.get("state", {})
            sizes = saved.get("sizes", {})
            for name in self._names:
                file = self._stack.enter_context((self.folder / name).open("ab"))
                file.truncate(sizes.get(name, 0))
                self._files[name] = file
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, contents: Mapping[str, bytes]) -> None:
        """Add to files."""
        for name, content in contents.items():
            self._files[name].write(content)

    def commit(self, state: Mapping[str, Any]) -> None:
        """Sync what was appended to the disk, and write the state that belongs to it."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self._files.items()}
        saved = {"key": self.key, "sizes": sizes, "state": state}
        atomic.write_text(self.folder / _STATE, json.dumps(saved))

    def remove(self) -> None:
        """Remove the folder, when its files are elsewhere."""
        shutil.rmtree(self.folder)

    def has_moved(self, name: str) -> bool:
        """Tell whether a run with this key has moved a file to its target and was killed then."""
        saved, target = self._read_saved(), self._targets[name]
        return (
            saved.get("key") == self.key
            and not (self.folder / name).exists()
            and target.is_file()
            and target.stat().st_size == saved["sizes"][name]
        )

    def _take_back(self) -> None:
        for name in filter(self.has_moved, self._targets):
            self._targets[name].rename(self.folder / name)

    def _read_saved(self) -> dict[str, Any]:
        """Read what was committed last, of whatever key."""
        try:
            saved: dict[str, Any] = json.loads((self.folder / _STATE).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return saved

    def _read_state(self) -> dict[str, Any]:
        """Read what was committed; empty if it is of another key or a file has been lost."""
        saved = self._read_saved()
        sizes = {name: self._size(name) for name in self._names}
        if saved.get("key") != self.key or any(sizes[n] < saved["sizes"][n] for n in sizes):
            return {}
        return saved

    def _size(self, name: str) -> int:
        file = self.folder / name
        return file.stat().st_size if file.is_file() else -1
