"""The zip archive that a file of `torch.save` is: where its storages are, and their checksums.

torch itself compares no checksum, and takes whatever sizes an archive claims.
"""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from torch import Tensor

from alignctl.checkpoints.lazy import as_bytes, read_bytes
from alignctl.errors import UserError

_CHUNK = 8 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Archive:
    """Where the storages of a file are.

    Attributes:
        file: The file.
        start: Where the archive begins in it.
        entries: The archive's entries, by the offset of their bytes in the archive; none where the
            file is of the time before archives.
        has_checksums: torch can leave them out; then all are zero.
    """

    file: Path
    start: int
    entries: Mapping[int, zipfile.ZipInfo]
    has_checksums: bool
    _verified: set[int] = field(default_factory=set)

    def compare(self, begin: int, content: Tensor, where: str) -> None:
        """Compares the bytes of a storage, which were read already, with their checksum.

        Raises:
            UserError: They are not those that were written.
        """
        self._compare(begin, zlib.crc32(as_bytes(content)), where)

    def verify(self, begin: int, where: str) -> None:
        """Reads a storage of which only parts are wanted, once, and compares its checksum.

        Raises:
            UserError: Its bytes are not those that were written.
        """
        if begin in self._verified or not self.has_checksums:
            return
        size, checksum = self.entries[begin].file_size, 0
        for done in range(0, size, _CHUNK):
            offset = self.start + begin + done
            content = read_bytes(self.file, offset, min(_CHUNK, size - done))
            checksum = zlib.crc32(as_bytes(content), checksum)
        self._compare(begin, checksum, where)
        self._verified.add(begin)

    def _compare(self, begin: int, checksum: int, where: str) -> None:
        if self.has_checksums and checksum != self.entries[begin].CRC:
            raise UserError(
                f"{where}: its checksum differs from the one in the file",
                "the file is damaged: copy or download it again",
            )


def open_archive(file: Path, start: int, part: IO[bytes]) -> Archive:
    """Looks at all entries, and compares all but the storages with their checksums.

    Args:
        file: The file.
        start: Where the archive begins in it.
        part: The archive.

    Raises:
        ValueError: It is an archive that torch does not write.
        zipfile.BadZipFile: It is damaged.
    """
    found = {}
    with zipfile.ZipFile(part) as archive:
        entries = archive.infolist()
        has_checksums = any(entry.CRC for entry in entries)
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ValueError(f"{entry.filename} in it is compressed")
            part.seek(entry.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", part.read(4))
            begin = entry.header_offset + 30 + name_length + extra_length
            found[begin] = entry
            name = entry.filename.partition("/")[2]
            if name.startswith("data/"):
                continue
            part.seek(begin)
            content = part.read(entry.file_size)
            if has_checksums and zlib.crc32(content) != entry.CRC:
                raise ValueError(f"the checksum of {entry.filename} in it differs")
            if name == "byteorder" and content != b"little":
                raise ValueError("its numbers are not in little-endian order")
    return Archive(file, start, found, has_checksums)
