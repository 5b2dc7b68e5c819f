"""Damage to the files of a folder, as disks, networks and hands do it: one seed, one damage."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476838744\n"


def corrupt(folder: Path, seed: object) -> str:
    """Damages one file, or two, of a folder; says what it did."""
    chance = random.Random(str(seed))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = chance.choice(files)
    name = str(file.relative_to(folder))
    if file.suffix == ".json" and chance.random() < 0.5:
        return f"{name}: {_edit(file, chance)}"
    kind = chance.choice([*_OF_BYTES, "delete", "replace", "swap", "copy"])
    if kind in _OF_BYTES:
        file.write_bytes(_OF_BYTES[kind](bytearray(file.read_bytes()), chance))
        return f"{name}: {kind}"
    if kind == "delete":
        file.unlink()
        return f"{name}: {kind}"
    if kind == "replace":
        other = chance.choice(sorted(_OTHER_FILES))
        file.write_bytes(_OTHER_FILES[other])
        return f"{name}: replaced by {other}"
    source = chance.choice([other for other in files if other != file] or [file])
    old, new = file.read_bytes(), source.read_bytes()
    file.write_bytes(new)
    if kind == "swap":
        source.write_bytes(old)
    return f"{name}: {kind} {source.relative_to(folder)}"


# ---- bytes ----


def _flip_bits(content: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 8) if content else 0):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def _range(content: bytearray, chance: random.Random) -> slice:
    """Mostly a few bytes; of a torn page or a lost block, many."""
    start = chance.randrange(len(content) + 1)
    length = chance.choice([chance.randint(1, 64), 512, 4096, len(content) // 2])
    return slice(start, start + length)


def _truncate(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: chance.randrange(len(content) + 1)])


def _cut_out(content: bytearray, chance: random.Random) -> bytes:
    del content[_range(content, chance)]
    return bytes(content)


def _zero(content: bytearray, chance: random.Random) -> bytes:
    lost = _range(content, chance)
    content[lost] = bytes(len(content[lost]))
    return bytes(content)


def _duplicate(content: bytearray, chance: random.Random) -> bytes:
    twice = _range(content, chance)
    return bytes(content[: twice.start] + content[twice] + content[twice.start :])


def _append(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content) + chance.randbytes(chance.randint(1, 5000))


_OF_BYTES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "flip bits": _flip_bits,
    "flip bits again": _flip_bits,  # the most usual one, and the hardest to see
    "truncate": _truncate,
    "cut out": _cut_out,
    "zero": _zero,
    "duplicate": _duplicate,
    "append": _append,
}


def _archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", "text " * 100)
    return stream.getvalue()


_OTHER_FILES = {
    "nothing": b"",
    "a Git-LFS pointer": POINTER,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "an archive": _archive(),
    "a pickle": b"\x80\x04]\x94(K\x01K\x02e.",
    "a page": b"<!doctype html><html><body>404 Not Found</body></html>",
    "a list": b"[1, 2, 3]",
    "an object": b"{}",
}


# ---- JSON ----

_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    7,
    0.5,
    float("nan"),
    float("inf"),
    10**30,
    10**400,
    "",
    "0",
    "..",
    "../model.safetensors",
    "a\0b",
    "x" * 300,
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
]


def _edit(file: Path, chance: random.Random) -> str:
    """Changes one value somewhere in a JSON file."""
    if chance.random() < 0.05:
        file.write_text("[" * 100_000)
        return "nested without end"
    tree = json.loads(file.read_text(encoding="utf-8"))
    parents = list(_objects(tree))
    parent = chance.choice(parents)
    key = chance.choice(sorted(parent)) if parent else "new"
    kind = chance.choice(["set", "set", "delete", "add", "exchange"])
    if kind == "set":
        parent[key] = chance.choice(_VALUES)
    elif kind == "add":
        key = "surprise"
        parent[key] = chance.choice(_VALUES)
    elif kind == "exchange" and parent:
        other = chance.choice(sorted(parent))
        parent[key], parent[other] = parent[other], parent[key]
    else:
        parent.pop(key, None)
    file.write_text(json.dumps(tree), encoding="utf-8")
    return f"{kind} {key} = {str(parent.get(key))[:40]!r}"


def _objects(tree: Any) -> "list[dict[str, Any]]":
    if isinstance(tree, dict):
        return [tree, *(found for branch in tree.values() for found in _objects(branch))]
    return []
