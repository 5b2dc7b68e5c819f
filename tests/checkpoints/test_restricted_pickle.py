"""Pickles in both directions, beside Python's own reader and PyTorch's own classes."""

import argparse
import pickle
import pickletools
import random
from collections import Counter, OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties

from alignctl.checkpoints.pickles import torch_names
from alignctl.checkpoints.pickles.restricted_pickle import (
    Forbidden,
    Inert,
    dumps,
    loads,
    make_global,
    sizes,
)
from alignctl.checkpoints.tensors.dtypes import FLOAT32, DType

METADATA = "torch.distributed.checkpoint.metadata"


def test_what_is_written_means_pytorchs_own_objects_to_its_reader() -> None:
    size = make_global("torch", "Size")
    written = {
        "type": make_global("torch", "bfloat16"),
        "size": size((2, 3)),
        "index": make_global(METADATA, "MetadataIndex")("a", size((0,)), 1),
        "properties": make_global(METADATA, "TensorProperties")(make_global("torch", "float16")),
        "again": [make_global("torch", "bfloat16"), 1.5, None, "two"],
        "args": argparse.Namespace(tp=2, dtype=make_global("torch", "float32")),
    }
    assert pickle.loads(dumps(written)) == {
        "type": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "index": MetadataIndex("a", torch.Size([0]), 1),
        "properties": TensorProperties(torch.float16),
        "again": [torch.bfloat16, 1.5, None, "two"],
        "args": argparse.Namespace(tp=2, dtype=torch.float32),
    }


def test_it_is_written_in_the_protocol_that_pytorch_reads() -> None:
    codes = [
        code.proto for code, _, _ in pickletools.genops(dumps([make_global("torch", "Size")((1,))]))
    ]
    assert max(codes) == 2


def test_a_program_that_is_not_installed_can_be_named() -> None:
    content = dumps(make_global("no.such.program", "Class")(1, 2))
    with pytest.raises(ModuleNotFoundError, match=r"no"):
        pickle.loads(content)
    made = loads(content, {"no.such.program.Class": Inert})
    assert (type(made).__mro__[1], made.parts) == (Inert, (1, 2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_not_in_the_table_is_refused_by_its_name(protocol: int) -> None:
    with pytest.raises(Forbidden, match=r"asks for builtins\.eval, which is not allowed") as error:
        loads(pickle.dumps(eval, protocol), torch_names.ALLOWED)
    assert error.value.name == "builtins.eval"


def test_of_a_known_class_nothing_else_is_within_reach() -> None:
    """`Namespace.__init__.__globals__` would lead anywhere."""
    for name in ("Namespace.__init__", "Namespace.__init__.__globals__", "os.system"):
        words = ("argparse", name)
        content = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in words)
        with pytest.raises(Forbidden, match="argparse"):
            loads(b"\x80\x04" + content + b"\x93.", torch_names.ALLOWED)


def _sets(name: str, state: object) -> bytes:
    """A pickle that names something, sets attributes of it, and returns it."""
    module, _, last = name.rpartition(".")
    body = pickle.dumps(state, 2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{last}\n".encode() + body + b"b."


def test_what_a_pickle_does_to_a_class_ends_with_it() -> None:
    loads(_sets("argparse.Namespace", (None, {"tp": 7})), torch_names.ALLOWED)
    loads(_sets("torch.Size", (None, {"count": 7})), torch_names.ALLOWED)
    assert not hasattr(argparse.Namespace(), "tp")
    assert loads(pickle.dumps(argparse.Namespace(), 2), torch_names.ALLOWED).__dict__ == {}
    assert callable(loads(pickle.dumps(torch.Size([1])), torch_names.ALLOWED).count)


def test_what_a_pickle_does_to_a_type_ends_with_it() -> None:
    changed = loads(_sets("torch.float32", {"itemsize": 10**9}), torch_names.ALLOWED)
    assert changed.itemsize == 10**9
    assert FLOAT32.itemsize == 4
    assert loads(pickle.dumps(torch.float32), torch_names.ALLOWED) == FLOAT32


def test_references_to_the_outside_are_refused_where_there_is_none() -> None:
    with pytest.raises(pickle.UnpicklingError, match="refers to objects outside of it"):
        loads(b"\x80\x02X\x01\x00\x00\x00aQ.", {})


def test_a_table_without_end_is_refused_before_there_is_memory_for_it() -> None:
    with pytest.raises(pickle.UnpicklingError, match="asks for a table of 2147483648 objects"):
        loads(b"\x80\x04]r" + (2**31).to_bytes(4, "little") + b".", {})


def test_every_storage_of_pytorch_is_known_by_its_type() -> None:
    for theirs, ours in torch_names.STORAGE_OF.items():
        kind = getattr(torch, ours)
        assert kind.dtype == getattr(torch, theirs)
        assert torch_names.ALLOWED[f"torch.{ours}"].torch == kind.dtype


def test_ordered_dicts_and_sets_come_back_as_such() -> None:
    tree = {"o": OrderedDict(a=1), "s": {1, 2}, "n": argparse.Namespace(a=[1, (2, 3)])}
    made = loads(pickle.dumps(tree, 2), torch_names.ALLOWED)
    assert (made["o"], made["s"], made["n"].a) == ({"a": 1}, {1, 2}, [1, (2, 3)])
    assert isinstance(made["n"], argparse.Namespace)


def _mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, left out, repeated, or made other instructions."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        place, other = chance.randrange(len(changed)), chance.randrange(len(changed))
        stop = place + chance.randrange(1, 6)
        instruction = chance.choice(pickletools.opcodes).code.encode("latin-1")
        changed[place:stop] = chance.choice(
            (b"", instruction, bytes([chance.randrange(256)]), changed[other : other + 20])
        )
    return bytes(changed)


def test_three_thousand_mutations_end_in_a_tree_or_an_exception_and_change_nothing() -> None:
    tree = {
        "args": argparse.Namespace(tp=1, dtype=torch.bfloat16),
        "rest": [OrderedDict(a=torch.Size([1, 2])), {1, 2}, 3.5, b"bytes", "text"],
    }
    content, chance = pickle.dumps(tree, 2), random.Random(0)
    outcomes = Counter[str]()
    for _ in range(3000):
        try:
            loads(_mutated(content, chance), torch_names.ALLOWED)
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["read"] += 1
    assert DType("float32", 4, 0x7F800000, 2.0**-23) == FLOAT32
    assert vars(argparse.Namespace(tp=2)) == {"tp": 2}
    assert outcomes["read"] > 30
    assert outcomes["Forbidden"] > 30


def _doubled(make: Callable[[object], object], levels: int) -> object:
    value: object = make(())
    for _ in range(levels):
        value = make(value)
    return value


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: [x, x],
        lambda x: (x, x),
        lambda x: {"a": x, "b": x},
        lambda x: argparse.Namespace(a=x, b=x),
    ],
    ids=["lists", "tuples", "dicts", "namespaces"],
)
def test_a_few_bytes_that_mean_a_billion_objects_are_refused(
    protocol: int, make: Callable[[object], object]
) -> None:
    """2^60 of them; those that are shared ten times are read as they are."""
    bomb, plain = _doubled(make, 60), [_doubled(make, 3)] * 10
    with pytest.raises(pickle.UnpicklingError, match="repeats parts of itself"):
        loads(pickle.dumps(bomb, protocol), torch_names.ALLOWED)
    found = loads(pickle.dumps(plain, protocol), torch_names.ALLOWED)
    assert [repr(each) for each in found] == [repr(each) for each in plain]


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_key_that_would_be_hashed_without_end_is_refused(protocol: int) -> None:
    """Python hashes the key while it reads: refused before that."""
    opcodes = [b"\x80" + bytes([protocol]), pickle.EMPTY_DICT, pickle.EMPTY_TUPLE]
    for place in range(60):
        opcodes += [pickle.BINPUT + bytes([place]), pickle.BINGET + bytes([place]), pickle.TUPLE2]
    content = b"".join([*opcodes, pickle.NONE, pickle.SETITEM, pickle.STOP])
    with pytest.raises(pickle.UnpicklingError, match="repeats parts of itself"):
        loads(content, {})


def test_a_list_of_itself_is_refused_only_where_it_is_repeated() -> None:
    loop: list[object] = []
    loop += [loop] * 6
    with pytest.raises(pickle.UnpicklingError, match="without end"):
        loads(pickle.dumps(loop), {})


def test_a_shape_has_a_few_sizes() -> None:
    assert sizes(range(64)) == tuple(range(64))
    with pytest.raises(ValueError, match="more than 64 sizes"):
        sizes([1] * 65)
