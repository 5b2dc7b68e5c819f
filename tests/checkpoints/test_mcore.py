import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, state_dict_loader

from alignctl.checkpoints.formats.mcore import plain_name, read, stored_name, write
from alignctl.checkpoints.manifest import METADATA, Recorder
from alignctl.checkpoints.tensors.dtypes import bits_of
from alignctl.errors import UserError
from alignctl.models.families import weight_map
from alignctl.models.weight_map import full_shape
from tests.checkpoints.folders import (
    FAMILY_NAMES,
    Family,
    architecture,
    is_identical,
    lazy,
    made,
)
from tests.checkpoints.samples import index_of

LAYERS = 2
NORM = "decoder.layers.1.input_layernorm.weight"
PROJECTION = "decoder.layers.{}.self_attention.linear_proj.weight"
STORED_PROJECTION = "decoder.layers.self_attention.linear_proj.weight"


def tensors(family: Family, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    model = architecture(family)
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(full_shape(row, model), generator=generator).to(dtype)
        for name, row in weight_map(model).items()
    }


def write_all(folder: Path, full: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with Recorder() as recorder:
        write(folder, lazy(full), map(bits_of, full.values()), num_layers=LAYERS, recorder=recorder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "release", tensors("llama2"))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_bit_for_bit(
    family: Family, dtype: torch.dtype, tmp_path: Path
) -> None:
    full = tensors(family, dtype)
    opened = read(write_all(tmp_path / "release", full))
    assert is_identical(made(opened), full)
    assert all(opened[name].shape == tuple(t.shape) for name, t in full.items())
    assert all(opened[name].dtype.torch == dtype for name in full)


def test_the_layers_are_stacked_as_megatron_expects_them(folder: Path) -> None:
    """Read by torch's own reader: one tensor for all layers, [2, 16, 16]."""
    full = tensors("llama2")
    stacked = torch.zeros(LAYERS, 16, 16)
    state = {STORED_PROJECTION: stacked}
    reader = filesystem.FileSystemReader(folder)
    state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    for layer in range(LAYERS):
        assert torch.equal(stacked[layer], full[PROJECTION.format(layer)])


@pytest.mark.parametrize(
    ("ours", "theirs", "layer"),
    [
        ("embedding.word_embeddings.weight", "embedding.word_embeddings.weight", None),
        ("decoder.final_layernorm.bias", "decoder.final_layernorm.bias", None),
        ("decoder.layers.12.mlp.linear_fc2.bias", "decoder.layers.mlp.linear_fc2.bias", 12),
        (NORM, "decoder.layers.self_attention.linear_qkv.layer_norm_weight", 1),
        (
            "decoder.layers.0.pre_mlp_layernorm.bias",
            "decoder.layers.mlp.linear_fc1.layer_norm_bias",
            0,
        ),
    ],
)
def test_norms_have_the_names_of_fused_layers(ours: str, theirs: str, layer: int | None) -> None:
    assert stored_name(ours) == (theirs, layer)
    assert (
        plain_name(theirs) == ours
        if layer is None
        else plain_name(theirs) in ours.replace(f".{layer}.", ".")
    )


class Call:
    """Pickled, it makes the reader call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (exec, "builtins.exec"),
        (torch.load, "torch.serialization.load"),
    ],
)
def test_an_index_that_would_run_code_is_refused_and_not_run(
    function: Callable[..., Any], name: str, folder: Path
) -> None:
    marker = folder.parent / "marker"
    code = f"open({str(marker)!r}, 'w')" if function is exec else f"touch {marker}"
    metadata = index_of(folder)
    metadata.planner_data = Call(function, code)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError) as error:
        read(folder)
    assert f"it asks for {name}, which is not allowed" in error.value.message
    assert str(folder / METADATA) in error.value.message
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps(OrderedDict(a=1)), pickle.dumps([1, 2])[:-3]]
)
def test_an_index_that_is_damaged_is_refused(content: bytes, folder: Path) -> None:
    (folder / METADATA).write_bytes(content)
    with pytest.raises(UserError, match="not the index of a distributed checkpoint"):
        read(folder)


def test_a_missing_index_is_named(folder: Path) -> None:
    (folder / METADATA).unlink()
    with pytest.raises(UserError, match=r"\.metadata: cannot be read: No such file"):
        read(folder)


def test_a_truncated_file_is_named_with_the_tensor(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        made(read(folder))
    assert error.value.message.startswith(f"{file}: not a readable PyTorch file")


def test_a_layer_that_no_rank_has_written_is_missed(folder: Path) -> None:
    metadata = index_of(folder)
    entry: Any = metadata.state_dict_metadata[STORED_PROJECTION]
    entry.chunks = entry.chunks[:1]
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    opened = read(folder)
    opened[PROJECTION.format(0)].make()
    with pytest.raises(UserError, match=r"linear_proj.weight is incomplete at \[1, 0"):
        opened[PROJECTION.format(1)].make()


def test_an_index_cannot_name_a_file_outside_the_folder(folder: Path) -> None:
    metadata = index_of(folder)
    metadata.storage_data = {
        index: replace(info, relative_path=f"../{info.relative_path}")
        for index, info in metadata.storage_data.items()
    }
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="lies outside the folder"):
        read(folder)[NORM].make()


def test_a_type_in_the_index_that_the_file_does_not_have_is_refused(folder: Path) -> None:
    """As many bytes: the numbers would be read as others."""
    metadata = index_of(folder)
    entry: Any = metadata.state_dict_metadata[STORED_PROJECTION]
    entry.properties.dtype = torch.int32
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="a chunk is not the tensor that the index tells of"):
        read(folder)[PROJECTION.format(0)].make()


def test_two_chunks_at_one_place_are_refused(folder: Path) -> None:
    """One layer would be given for the other."""
    metadata = index_of(folder)
    first, second = (i for i in metadata.storage_data if i.fqn == STORED_PROJECTION)
    metadata.storage_data[second] = metadata.storage_data[first]
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"linear_proj\.weight lie at the same place"):
        read(folder)


def test_chunks_that_overlap_leave_no_hole_unseen(tmp_path: Path) -> None:
    """Two halves of an embedding, both entered as the first: the second half is not a number."""
    full = tensors("llama2")
    name = "embedding.word_embeddings.weight"
    folder = write_all(tmp_path / "release", full)
    metadata = index_of(folder)
    entry: Any = metadata.state_dict_metadata[name]
    entry.size = torch.Size([22, 16])
    entry.chunks.append(replace(entry.chunks[0]))
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    made = read(folder)[name].make()
    assert torch.equal(made[:11], full[name])
    assert made[11:].isnan().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "state_dict_metadata", None),
        lambda m: setattr(m, "storage_data", [1]),
        lambda m: setattr(m.state_dict_metadata[STORED_PROJECTION], "size", ["x"]),
        lambda m: setattr(m.state_dict_metadata[STORED_PROJECTION], "chunks", None),
        lambda m: setattr(m.state_dict_metadata[STORED_PROJECTION], "size", torch.Size([1, 1, 1])),
        lambda m: setattr(m.state_dict_metadata[STORED_PROJECTION].properties, "dtype", "float"),
    ],
)
def test_an_index_of_other_things_is_refused(change: Callable[[Any], object], folder: Path) -> None:
    metadata = index_of(folder)
    change(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="not the index of a distributed checkpoint"):
        read(folder)
