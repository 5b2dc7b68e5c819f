"""The zip archive that a file of `torch.save` is: where its storages are, and their checksums.

torch itself compares no checksum, and takes whatever sizes an archive claims.
"""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from alignctl.checkpoints.tensors.mapped_file import windows
from alignctl.errors import UserError

_DESCRIPTION = "data.pkl"


@dataclass(frozen=True)
class Entry:
    """The bytes of one storage.

    Attributes:
        begin: Where they begin in the archive.
        num_bytes: How many there are.
        checksum: Their CRC-32.
    """

    begin: int
    num_bytes: int
    checksum: int


@dataclass(frozen=True)
class Archive:
    """Contents of a file.

    Attributes:
        file: The file.
        start: Where the archive begins in it.
        description: The pickle of the objects.
        storages: By their keys.
        has_checksums: torch can leave them out; then all are zero.
    """

    file: Path
    start: int
    description: bytes
    storages: Mapping[str, Entry]
    has_checksums: bool
    _verified: set[str] = field(default_factory=set)

    def compare(self, key: str, content: NDArray[np.uint8], where: str) -> None:
        """Compare the bytes of a storage, which were read already, with their checksum.

        Raises:
            UserError: They are not those that were written.
        """
        if self.has_checksums:
            self._compare(key, isal_zlib.crc32(content.data), where)

    def verify(self, key: str, where: str) -> None:
        """Read a storage of which only parts are wanted, once, and compare its checksum.

        Raises:
            UserError: Its bytes are not those that were written.
        """
        if key in self._verified or not self.has_checksums:
            return
        entry, checksum = self.storages[key], 0
        for window in windows(self.file, self.start + entry.begin, entry.num_bytes):
            checksum = isal_zlib.crc32(window.data, checksum)
        self._compare(key, checksum, where)
        self._verified.add(key)

    def _compare(self, key: str, checksum: int, where: str) -> None:
        if checksum != self.storages[key].checksum:
            raise UserError(
                f"{where}: its checksum differs from the one in the file",
                "the file is damaged: copy or download it again",
            )


def open_archive(file: Path, start: int, part: IO[bytes]) -> Archive:
    """Read all entries, and compare all but the storages with their checksums.

    Args:
        file: The file.
        start: Where the archive begins in it.
        part: The archive.

    Raises:
        ValueError: It is an archive that torch does not write.
        zipfile.BadZipFile: It is damaged.
    """
    storages, description = {}, None
    with zipfile.ZipFile(part) as archive:
        entries = archive.infolist()
        has_checksums = any(entry.CRC for entry in entries)
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ValueError(f"{entry.filename} in it is compressed")
            part.seek(entry.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", part.read(4))
            begin = entry.header_offset + 30 + name_length + extra_length
            name = entry.filename.partition("/")[2]
            if name.startswith("data/"):
                storages[name.removeprefix("data/")] = Entry(begin, entry.file_size, entry.CRC)
                continue
            part.seek(begin)
            content = part.read(entry.file_size)
            if has_checksums and isal_zlib.crc32(content) != entry.CRC:
                raise ValueError(f"the checksum of {entry.filename} in it differs")
            if name == "byteorder" and content != b"little":
                raise ValueError("its numbers are not in little-endian order")
            if name == _DESCRIPTION:
                description = content
    if description is None:
        raise ValueError(f"no {_DESCRIPTION} in it")
    return Archive(file, start, description, storages, has_checksums)
