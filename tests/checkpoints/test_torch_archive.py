"""What torch does not look at when it reads an archive: checksums, sizes, the order of bytes."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.serialization import set_crc32_options

from alignctl.checkpoints.pickles import torch_file
from alignctl.errors import UserError

WHOLE = torch.arange(1000.0)


def flip_a_bit(file: Path, entry: str, place: int) -> None:
    """In the content of an entry, of which torch aligns each to 64 bytes."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        (info,) = (each for each in archive.infolist() if each.filename.endswith(entry))
        start = content.index(archive.read(info), info.header_offset)
    content[start + place] ^= 1
    file.write_bytes(content)


def parts_of(file: Path) -> list[Tensor]:
    tree = torch_file.read(file)
    return [tree["view"].make(), torch_file.narrow(tree["whole"], 10, 20).make()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tree: dict[str, Any] = {"whole": WHOLE, "view": WHOLE[:10]}
    torch.save(tree, tmp_path / "file.pt")
    return tmp_path / "file.pt"


def test_of_a_tensor_that_is_read_in_parts_all_bytes_are_compared_with_the_checksum(
    file: Path,
) -> None:
    """The bit is in neither part; the storage is damaged all the same."""
    assert [part.tolist() for part in parts_of(file)] == [
        WHOLE[:10].tolist(),
        WHOLE[10:20].tolist(),
    ]
    flip_a_bit(file, "data/0", 3999)
    for name in ("view", "whole"):
        tensor = torch_file.read(file)[name]
        with pytest.raises(UserError, match=f"{name}: its checksum differs"):
            torch_file.narrow(tensor, 0, 5).make()


def test_the_description_is_compared_with_its_checksum(file: Path) -> None:
    """A bit in a name, which torch itself takes as it is."""
    with zipfile.ZipFile(file) as archive:
        place = archive.read("file/data.pkl").index(b"whole")
    flip_a_bit(file, "data.pkl", place)
    assert "whole" not in torch.load(file)
    with pytest.raises(UserError, match=r"the checksum of file/data\.pkl in it differs"):
        torch_file.read(file)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    set_crc32_options(False)
    try:
        torch.save({"whole": WHOLE, "view": WHOLE[:10]}, file)
    finally:
        set_crc32_options(True)
    assert torch.equal(parts_of(file)[1], WHOLE[10:20])
    assert torch.equal(torch_file.read(file)["whole"].make(), WHOLE)


def test_numbers_in_the_other_order_of_bytes_are_refused(file: Path) -> None:
    other = file.with_name("other.pt")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            is_order = entry.filename.endswith("byteorder")
            new.writestr(entry.filename, b"big" if is_order else old.read(entry))
    shutil.move(other, file)
    with pytest.raises(UserError, match="not in little-endian order"):
        torch_file.read(file)
