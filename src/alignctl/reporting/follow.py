"""Reading `metrics.jsonl` while another process writes it."""

import json
import os
from pathlib import Path
from typing import Any


class Follower:
    """Hands out the rows that were added since the last look, each once."""

    def __init__(self, path: Path, *, since: float) -> None:
        """Prepare to follow a file; it need not exist yet.

        Args:
            path: The file of JSON lines.
            since: Rows of an earlier time (seconds since 1970) belong to earlier attempts and are
                passed over, also when the file is replaced by one without its last rows.
        """
        self._path = path
        self._since = since
        self._inode = -1
        self._offset = 0

    def rows(self) -> list[dict[str, Any]]:
        """Read the new rows that are complete."""
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return []
        with stream:
            inode = os.fstat(stream.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            stream.seek(self._offset)
            # What follows the last newline is a row that is still being written.
            complete = stream.read().rpartition(b"\n")[0]
        if not complete:
            return []
        self._offset += len(complete) + 1
        rows = [json.loads(line) for line in complete.splitlines()]
        return [row for row in rows if row["time"] >= self._since]
