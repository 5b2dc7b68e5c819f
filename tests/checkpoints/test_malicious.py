"""Files made to harm whoever loads them: they run nothing, lead nowhere, and take no memory."""

import builtins
import json
import os
import pickle
import resource
import struct
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from alignctl.checkpoints.manifest import METADATA
from alignctl.config.convert import ConvertOptions
from alignctl.errors import UserError
from alignctl.run_folder import LATEST
from alignctl.stages import convert
from tests.checkpoints.folders import write_config
from tests.checkpoints.samples import FORMATS, MODEL, index_of, write


def refusal(name: str, folder: Path) -> str:
    """The message of a conversion, which must leave nothing behind."""
    save = folder.parent / "out" / "model"
    save.parent.mkdir(exist_ok=True)
    with pytest.raises(UserError) as error:
        convert.run(FORMATS[name].direction, ConvertOptions(load=folder, save=save, verify="none"))
    assert list(save.parent.iterdir()) == []
    return error.value.message


class Call:
    """Pickled, it makes the reader call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


FILES = {
    "bin": "pytorch_model.bin",
    "bin-sharded": "pytorch_model-00002-of-00003.bin",
    "mcore": "release/common.pt",
    "legacy": "release/mp_rank_01_001/model_optim_rng.pt",
    "legacy-pai": "release/mp_rank_00_000/model_rng.pt",
    "zero-2": "global_step2/mp_rank_00_model_states.pt",
    "zero-3": "global_step2/zero_pp_rank_1_mp_rank_00_optim_states.pt",
}
"""A file of each format that is a pickle."""

ALIASES = {"builtins.eval": "eval", "subprocess.Popen": "commands.Popen"}
"""What they are called in files of before archives, which are pickles of Python 2."""

CALLS: dict[str, Callable[[Path], Call]] = {
    "posix.system": lambda marker: Call(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
    "subprocess.Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("wanted", CALLS)
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_pickle_that_would_run_code_is_refused_by_what_it_asks_for(
    name: str, wanted: str, is_archive: bool, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    folder = write(name, tmp_path / "sample")
    file = folder / FILES[name]
    tree = torch.load(file, weights_only=False) | {"extra": CALLS[wanted](marker)}
    torch.save(tree, file, _use_new_zipfile_serialization=is_archive)
    message = refusal(name, folder)
    names = (wanted, ALIASES.get(wanted, wanted))
    assert message.startswith(tuple(f"{file}: refused: it asks for {name}" for name in names))
    assert not marker.exists()


@pytest.mark.parametrize("wanted", CALLS)
def test_an_index_that_would_run_code_is_refused_by_what_it_asks_for(
    wanted: str, tmp_path: Path
) -> None:
    marker, folder = tmp_path / "marker", write("mcore", tmp_path / "sample")
    metadata = index_of(folder / "release")
    metadata.planner_data = CALLS[wanted](marker)
    (folder / "release" / METADATA).write_bytes(pickle.dumps(metadata))
    assert f"it asks for {wanted}, which is not allowed" in refusal("mcore", folder)
    assert not marker.exists()


# ---- paths ----

PLACES = ["../out.distcp", "..", "/etc/hostname", "release/../../x", ""]


@pytest.mark.parametrize("place", PLACES)
def test_an_index_of_chunks_leads_nowhere_else(place: str, tmp_path: Path) -> None:
    folder = write("mcore", tmp_path / "sample")
    metadata = index_of(folder / "release")
    metadata.storage_data = {
        index: replace(info, relative_path=place) for index, info in metadata.storage_data.items()
    }
    (folder / "release" / METADATA).write_bytes(pickle.dumps(metadata))
    assert "outside the folder" in refusal("mcore", folder) or place in ("", "..")


@pytest.mark.parametrize("place", [*PLACES, "x" * 300, "a\0b"])
@pytest.mark.parametrize("name", ["safetensors-sharded", "bin-sharded"])
def test_an_index_of_shards_leads_nowhere_else(name: str, place: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path / "sample")
    (index,) = folder.glob("*.index.json")
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], place)
    index.write_text(json.dumps(content))
    message = refusal(name, folder)
    assert any(
        words in message for words in ("outside the model folder", "is missing", "name too long")
    )


@pytest.mark.parametrize("text", ["../release", "/etc", "-1", "1" * 5000, "٣", "release\n5"])
def test_a_tracker_file_leads_nowhere_else(text: str, tmp_path: Path) -> None:
    folder = write("mcore", tmp_path / "sample")
    (folder / LATEST).write_text(text)
    assert "is neither an iteration nor `release`" in refusal("mcore", folder)


# ---- sizes ----

TEN_TB = 10 * 10**12
ROWS = 2**40
"""Of an embedding that would take 70 TB."""


def _header_without_end(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


def _tensor_without_end(folder: Path) -> None:
    header = {
        "model.embed_tokens.weight": {
            "dtype": "F32",
            "shape": [ROWS, MODEL.hidden_size],
            "data_offsets": [0, ROWS * MODEL.hidden_size * 4],
        }
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


def _repeated_element(folder: Path) -> None:
    rows = 10**9  # as many as a configuration may say
    write_config(folder, MODEL.model_copy(update={"vocab_size": rows}))
    file = folder / "pytorch_model.bin"
    table = torch.zeros(1).expand(rows, MODEL.hidden_size)
    tables = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    torch.save(torch.load(file) | tables, file)


def _storage_without_end(folder: Path) -> None:
    """In a file of before archives, where storages have no place of their own."""
    file = folder / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1234567)}, file, _use_new_zipfile_serialization=False)
    old, new = b"J" + struct.pack("<i", 1234567), b"\x8a\x08" + struct.pack("<q", TEN_TB)
    file.write_bytes(file.read_bytes().replace(old, new))


def _compressed_description(folder: Path) -> None:
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28), compresslevel=1)
        archive.writestr("archive/version", b"3\n")


def _bytes_without_end(folder: Path) -> None:
    """Zeros, as many as a call of `bytearray` asks for."""
    torch.save({"a": Call(bytearray, TEN_TB)}, folder / "pytorch_model.bin")


def _layers_without_end(folder: Path) -> None:
    write_config(folder, MODEL.model_copy(update={"num_layers": 10_000}))


def _memo_without_end(folder: Path) -> None:
    """An instruction to keep an object at the two-billionth place of a table."""
    content = b"\x80\x04]" + b"r" + struct.pack("<I", 2**31) + b"."
    (folder / "release" / METADATA).write_bytes(content)


def _chunk_without_end(folder: Path) -> None:
    metadata = index_of(folder / "release")
    entry: Any = metadata.state_dict_metadata["embedding.word_embeddings.weight"]
    entry.size = torch.Size([ROWS, MODEL.hidden_size])
    first = entry.chunks[0]
    rest = torch.Size([ROWS - first.sizes[0], MODEL.hidden_size])
    entry.chunks.append(ChunkStorageMetadata(torch.Size([first.sizes[0], 0]), rest))
    (folder / "release" / METADATA).write_bytes(pickle.dumps(metadata))


def _stack_without_end(folder: Path) -> None:
    metadata = index_of(folder / "release")
    for key, entry in metadata.state_dict_metadata.items():
        if key.startswith("decoder.layers.") and hasattr(entry, "size"):
            entry.size = torch.Size([10**12, *entry.size[1:]])
    (folder / "release" / METADATA).write_bytes(pickle.dumps(metadata))


BOMBS: list[tuple[str, Callable[[Path], None], str]] = [
    ("safetensors", _header_without_end, "header too large"),
    ("safetensors", _tensor_without_end, "not a readable safetensors file"),
    ("safetensors", _layers_without_end, "21 tensors cannot be the 10000 layers"),
    ("bin", _repeated_element, "model.embed_tokens.weight: repeats the 4 bytes of its storage"),
    ("bin", _storage_without_end, "not a readable PyTorch file"),
    ("bin", _compressed_description, "archive/data.pkl in it is compressed"),
    ("bin", _bytes_without_end, "'a' is no tensor: this is not a file of weights alone"),
    ("mcore", _memo_without_end, "it asks for a table of 2147483648 objects"),
    ("mcore", _chunk_without_end, "a chunk without a place"),
    ("mcore", _stack_without_end, "no layers"),
]


@pytest.mark.parametrize(("name", "make", "words"), BOMBS, ids=lambda each: str(each)[:30])
def test_what_claims_to_be_huge_is_refused_before_memory_is_taken(
    name: str, make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = write(name, tmp_path / "sample")
    make(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refusal(name, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_tree_that_contains_itself_is_refused(tmp_path: Path) -> None:
    folder = write("legacy", tmp_path / "sample")
    file = folder / FILES["legacy"]
    tree = torch.load(file, weights_only=False)
    tree["model"]["itself"] = tree["model"]
    torch.save(tree, file)
    assert f"{file}: not a readable PyTorch file" in refusal("legacy", folder)
