"""Files of `torch.save`, beside what torch itself reads from them."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from alignctl.checkpoints.pickles import torch_file, torch_writer
from alignctl.checkpoints.tensors.dtypes import BFLOAT16, DTYPES, bits_of
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec
from alignctl.errors import UserError


def check(tree: dict[str, Tensor], file: Path) -> None:
    """Reads what torch has saved, and compares it with what torch reads."""
    torch.save(tree, file)
    theirs, ours = torch.load(file), torch_file.read(file)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        made = ours[name].make()
        assert (made.shape, made.dtype) == (tensor.shape, tensor.dtype)
        assert (bits_of(made) == bits_of(tensor)).all()


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_read(name: str, tmp_path: Path) -> None:
    """Types without a class of storages, such as uint16, are described in another way."""
    numbers = torch.arange(-3, 9).clamp(min=0).reshape(3, 4)
    check({"a": numbers.to(getattr(torch, name))}, tmp_path / "file.pt")


WHOLE = torch.arange(120.0)


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    offset=st.integers(0, 20),
    data=st.data(),
)
def test_any_view_is_read(
    shape: list[int], offset: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stride = [data.draw(st.integers(0, 12)) for _ in shape]
    view = WHOLE.as_strided(shape, stride, offset)
    check({"whole": WHOLE, "view": view}, tmp_path_factory.mktemp("view") / "file.pt")


def test_parameters_are_tensors(tmp_path: Path) -> None:
    marked = Parameter(torch.ones(2))
    marked.tensor_model_parallel = True  # type: ignore[attr-defined]
    check(
        {"a": Parameter(torch.ones(3)), "b": marked, "c": torch.tensor(3.0)}, tmp_path / "file.pt"
    )


def test_a_storage_of_another_size_than_is_told_is_refused(tmp_path: Path) -> None:
    """In a file without checksums, which would tell."""
    file = tmp_path / "file.pt"
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save({"a": torch.ones(4)}, file)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    content = file.read_bytes()
    place = content.index(b"K\x04", content.index(b"cpu"))  # its elements
    file.write_bytes(content[:place] + b"K\x03" + content[place + 2 :])
    with pytest.raises(UserError, match="a: its storage is of 16 bytes, not of 3 x 4"):
        torch_file.read(file)


def test_the_writer_writes_what_torch_reads(tmp_path: Path) -> None:
    tensors = {
        name: torch.randn(2, 3).to(each.torch) for name, each in DTYPES.items() if each.exponent
    }
    tree: dict[str, Any] = {
        "args": argparse.Namespace(params_dtype=BFLOAT16, tp=2, names=["a"]),
        "model": {name: Spec.of(tensor) for name, tensor in tensors.items()},
    }
    file = tmp_path / "file.pt"
    with file.open("wb") as stream, torch_writer.Writer(stream, tree) as writer:
        for tensor in tensors.values():
            writer.write(bits_of(tensor))
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(file, mmap=True)
    assert found["args"] == argparse.Namespace(params_dtype=torch.bfloat16, tp=2, names=["a"])
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in tensors.items())
    ours = torch_file.read(file)
    assert ours["args"].params_dtype == BFLOAT16
    assert all(isinstance(each, LazyTensor) for each in ours["model"].values())
