"""Pickles that name PyTorch's classes, read and written without importing or running any of them.

A pickle builds objects by calling what it names. Here a name is looked up in a table and means what
that says; a name that is not in the table is refused.
"""

import _compat_pickle
import io
import pickle
import pickletools
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast


class Forbidden(pickle.UnpicklingError):
    """A pickle asked for something that has no place in it.

    Attributes:
        name: Of that, with its module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}, which is not allowed")
        self.name = name


class Inert:
    """Stands for an object of another program that is of no interest: it only keeps its parts."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __setstate__(self, state: object) -> None:
        self.state = state


def loads(
    content: bytes,
    known: Mapping[str, Any],
    persistent: Callable[[Any], object] | None = None,
) -> Any:
    """Build what a pickle describes, from known names alone.

    Args:
        content: The pickle.
        known: What its names stand for: classes, functions, or values, by module and name.
        persistent: Makes something of each persistent id, of which there are none without it.

    Raises:
        Forbidden: It asks for a name that is not known.
        Exception: It is damaged, which can raise anything.
    """
    most = 10 * len(content) + 10_000
    repeats = _repeats(content)
    if repeats > _FEW:
        _check_hashes(content, most)
    tree = _Unpickler(content, known, persistent).load()
    if repeats > _FEW:
        _check_size(tree, most)
    return tree


_FEW = 4
"""Objects that are repeated so often make no pickle large."""

_IMMUTABLE = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_MADE = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD")
_CONTAINERS = (*_IMMUTABLE, *_MADE, "EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT", "EMPTY_SET")
_GET, _PUT = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")


def _repeats(content: bytes) -> int:
    """Count how often a pickle repeats an object that has parts.

    Thirty lists that each hold the one before twice are a few bytes, and a billion values to
    whoever walks through them.
    """
    containers: set[object] = set()
    repeats = places = 0
    before = ""
    for instruction, number, _ in pickletools.genops(content):  # which compares lengths itself
        name = instruction.name
        if name in _PUT:
            place = places if name == "MEMOIZE" else number
            # Python's reader sets aside room for all places up to this one.
            if isinstance(place, int) and place > len(content):
                raise pickle.UnpicklingError(f"it asks for a table of {place} objects")
            places += 1
            if before in _CONTAINERS:
                containers.add(place)
        elif name in _GET:
            repeats += number in containers
        before = name
    return repeats


def _check_hashes(content: bytes, most: int) -> None:
    """Refuse tuples that, written out, are much larger than the pickle: dict keys are hashed.

    Follows the reader's stack, with the size of each object in place of it. What is put into lists
    and dicts is not counted: they are never hashed.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[object, int] = {}
    for instruction, number, _ in pickletools.genops(content):
        name = instruction.name
        if name in _PUT:
            memo[len(memo) if name == "MEMOIZE" else number] = stack[-1]
        elif name in _GET:
            stack.append(memo[number])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            taken = instruction.stack_before
            start = marks.pop() if pickletools.markobject in taken else len(stack)
            # Before a mark, or without one, an instruction takes a fixed number of objects.
            start -= sum(
                each not in (pickletools.markobject, pickletools.stackslice) for each in taken
            )
            size = sum(stack[start:]) if name in (*_IMMUTABLE, *_MADE) else 0
            if size > most:
                raise pickle.UnpicklingError(f"it repeats parts of itself into {size} objects")
            del stack[start:]
            stack += [size + 1] * len(instruction.stack_after)


def _check_size(tree: Any, most: int) -> None:
    """Refuse what, written out, is much larger than the pickle; also what holds itself."""
    pending, count = [tree], 0
    while pending:
        each = pending.pop()
        if isinstance(each, str | bytes | int | float | type | None):
            continue
        parts: list[Any] = [*getattr(each, "__dict__", {}).values()]
        if isinstance(each, dict):
            parts += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            parts += each
        count += 1 + len(parts)
        if count > most:
            raise pickle.UnpicklingError("it repeats parts of itself without end")
        pending += parts


_MOST_SIZES = 64
"""Dimensions of a tensor; torch has as many."""


def sizes(numbers: Iterable[object]) -> tuple[int, ...]:
    """Check a shape, or another row of sizes, that a pickle holds.

    Raises:
        ValueError: One of them is no size, or there are too many.
        TypeError: They cannot be iterated over.
    """
    found = tuple(islice(numbers, _MOST_SIZES + 1))
    if len(found) > _MOST_SIZES:
        raise ValueError(f"more than {_MOST_SIZES} sizes are of no tensor")
    if not all(type(number) is int and number >= 0 for number in found):
        raise ValueError(f"{found} are no sizes")
    return cast("tuple[int, ...]", found)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        content: bytes,
        known: Mapping[str, Any],
        persistent: Callable[[Any], object] | None,
    ) -> None:
        super().__init__(io.BytesIO(content))
        self._known, self._persistent = known, persistent
        self._found: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Of Python 2, whose names protocol 2 still uses.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if full not in self._known:
            raise Forbidden(full)
        if full not in self._found:
            self._found[full] = _own(self._known[full])
        return self._found[full]

    def persistent_load(self, pid: Any) -> object:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of it")
        return self._persistent(pid)


def _own(known: Any) -> Any:
    """Copy a known value for one pickle alone, which may set attributes of what it names."""
    if isinstance(known, type):
        return type(known.__name__, (known,), {})
    return partial(known) if callable(known) else copy(known)


class Global:
    """Something that a pickle names, and that whoever reads it imports; made by `make_global`."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    @property
    def opcode(self) -> bytes:
        """Instruction that names it."""
        return pickle.GLOBAL + f"{self._module}\n{self._name}\n".encode()

    def __call__(self, *arguments: object) -> "Call":
        """Describe a call of it, whose result is likewise made by the reader."""
        return Call(self, arguments)

    def __reduce__(self) -> str:
        # Names are written only of what can be imported here: a placeholder, by `__getattr__`.
        return f"{self._module}:{self._name}".replace(".", "/")


@dataclass(frozen=True)
class Call:
    """Pickled, it is what the reader gets by calling something.

    Attributes:
        function: A class or function.
        arguments: What it is called with.
    """

    function: Global
    arguments: tuple[object, ...]

    def __reduce__(self) -> tuple[Global, tuple[object, ...]]:
        return self.function, self.arguments


_PLACEHOLDERS: dict[str, Global] = {}


def make_global(module: str, name: str) -> Global:
    """Make a name for a pickle to hold; what it names need not be installed."""
    new = Global(module, name)
    return _PLACEHOLDERS.setdefault(new.__reduce__(), new)


def __getattr__(name: str) -> Global:
    if name not in _PLACEHOLDERS:
        raise AttributeError(name)
    return _PLACEHOLDERS[name]


def dumps(value: object, persistent_id: Callable[[object], object] | None = None) -> bytes:
    """Write a pickle of protocol 2, which is PyTorch's.

    Args:
        value: Dicts, lists, tuples, numbers, text, namespaces, `Global`s and `Call`s.
        persistent_id: Of an object that is not described itself, or None.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=2)
    pickler.identify = persistent_id
    pickler.dump(value)
    content, parts, done = stream.getvalue(), [], 0
    for instruction, argument, place in pickletools.genops(content):
        module, _, name = str(argument).partition(" ")
        if instruction.name == "GLOBAL" and module == __name__ and place is not None:
            parts += [content[done:place], _PLACEHOLDERS[name].opcode]
            done = place + len(pickle.GLOBAL) + len(f"{argument}\n")
    return b"".join([*parts, content[done:]])


class _Pickler(pickle.Pickler):
    identify: Callable[[object], object] | None = None

    def persistent_id(self, obj: object) -> object:
        return None if self.identify is None else self.identify(obj)
