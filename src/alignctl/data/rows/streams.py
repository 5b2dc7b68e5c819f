"""The content of plain, gzip and zstandard files in pieces; one that ends early is an error."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from alignctl.user_files import opened

_CHUNK_BYTES = 1 << 20
# Of compressed bytes, which may become thirty thousand times as many.
_ZST_BYTES = 1 << 12


class DamagedError(Exception):
    """A compressed stream that ends early or does not decode."""


def read_chunks(file: Path) -> Iterator[tuple[bytes, int]]:
    """Read the decompressed content of a file.

    Args:
        file: Its name says how it is compressed: `.gz`, `.zst`, or anything else for plain.

    Yields:
        Pieces, each with the bytes of the (compressed) file that were read so far.

    Raises:
        DamagedError: The compressed stream is cut short or broken.
        UserError: It is no regular file.
        OSError: The file cannot be read.
    """
    with opened(file) as stream:
        if file.name.endswith(".zst"):
            chunks = _zst_chunks(stream)
        elif file.name.endswith(".gz"):
            chunks = _gzip_chunks(stream)
        else:
            chunks = _plain_chunks(stream)
        for chunk in chunks:
            yield chunk, stream.tell()


def _plain_chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _gzip_chunks(stream: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=stream) as content:
            while chunk := content.read(_CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedError(str(error)) from error


def _zst_chunks(stream: BinaryIO) -> Iterator[bytes]:
    # zstandard's stream_reader takes a truncated frame for the end of the file; the
    # decompression object tells whether the frame was complete.
    import zstandard

    decoder = None
    while data := stream.read(_ZST_BYTES):
        while data:
            decoder = decoder or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield decoder.decompress(data)
            except zstandard.ZstdError as error:
                raise DamagedError(str(error)) from error
            data = decoder.unused_data if decoder.eof else b""
            decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise DamagedError("the last zstd frame is incomplete")
