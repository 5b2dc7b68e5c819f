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
    """What a pickle describes.

    Args:
        content: The pickle.
        known: What its names stand for: classes, functions, or values, by module and name.
        persistent: Makes something of each persistent id, of which there are none without it.

    Raises:
        Forbidden: It asks for a name that is not known.
        Exception: It is damaged, which can raise anything.
    """
    for instruction, number, _ in pickletools.genops(content):  # which compares lengths itself
        # Python's reader sets aside room for all places up to this one.
        is_place = instruction.name in ("PUT", "LONG_BINPUT")
        if is_place and isinstance(number, int) and number > len(content):
            raise pickle.UnpicklingError(f"it asks for a table of {number} objects")
    return _Unpickler(content, known, persistent).load()


def sizes(numbers: Iterable[object]) -> tuple[int, ...]:
    """What a pickle holds as a shape, or as another row of sizes.

    Raises:
        ValueError: They are none.
        TypeError: They are no row of anything.
    """
    found = tuple(numbers)
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
    """A copy for one pickle alone, which may set attributes of what it has named."""
    if isinstance(known, type):
        return type(known.__name__, (known,), {})
    return partial(known) if callable(known) else copy(known)


class Global:
    """Something that a pickle names, and that whoever reads it imports; made by `named`."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    @property
    def opcode(self) -> bytes:
        """The instruction that names it."""
        return pickle.GLOBAL + f"{self._module}\n{self._name}\n".encode()

    def __call__(self, *arguments: object) -> "Call":
        """Its result, which is likewise made by the reader."""
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


def named(module: str, name: str) -> Global:
    """What a pickle is to name; it need not be installed."""
    new = Global(module, name)
    return _PLACEHOLDERS.setdefault(new.__reduce__(), new)


def __getattr__(name: str) -> Global:
    if name not in _PLACEHOLDERS:
        raise AttributeError(name)
    return _PLACEHOLDERS[name]


def dumps(value: object, persistent_id: Callable[[object], object] | None = None) -> bytes:
    """A pickle of protocol 2, which is PyTorch's.

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
