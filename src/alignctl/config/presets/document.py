"""YAML files and command-line values as plain trees that remember where each key was written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignctl.errors import UserError
from alignctl.user_files import read_text

KeyPath = tuple[str | int, ...]
"""The way to a value: keys of mappings and indices of lists."""


@dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    text: str
    """What an error message calls it: a file and line, a flag, an override."""

    is_command_line: bool = False
    """Whether the user typed it just now, which makes it the first suspect."""

    distance: int = 0
    """Files between it and the preset that the user named: the nearest is the next suspect."""


@dataclass(frozen=True)
class Document:
    """A tree of plain values, and the origin of its keys."""

    tree: dict[str, Any]
    origins: dict[KeyPath, Origin]


MOST_BYTES = 1 << 16
"""Of a YAML file: four times the largest preset. What nobody would write by hand takes seconds."""

_DEEPEST = 20
"""Lists and mappings within each other. A preset has 4."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: 1e-5 is a number, and `no` is a word.

    There are no aliases: a few lines of them are a billion values. Every value stands where it is
    used, with its own line for messages.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise yaml.MarkedYAMLError(
                problem=f"{mark}{event.anchor}: anchors and aliases are not read; write the value "
                "itself (a value that begins with this character needs quotes)",
                problem_mark=event.start_mark,
            )
        if self.depth == _DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_DEEPEST} lists and mappings within each other",
                problem_mark=event.start_mark,
            )
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_SCALARS = [
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?\.inf|\.nan", "-+."),
]
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
    )


def read_yaml(path: Path) -> Document:
    """Read a YAML file, with the file and line of every key.

    Raises:
        UserError: When the file cannot be read, is not YAML, is not a mapping, or repeats a key.
    """
    name = shown(path)
    return parse_yaml(read_text(Path(name), MOST_BYTES), name)


def parse_yaml(text: str, name: str) -> Document:
    """Do as `read_yaml` with the text of a file that messages call `name`."""
    node = _compose(text, name)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name} is not a mapping of keys to values")
    reader = _Reader(name)
    tree = reader.value(node, ())
    if reader.problems:
        raise UserError("\n".join(reader.problems))
    return Document(tree, reader.origins)


def parse_value(text: str, source: str, *, may_be_mapping: bool = False) -> Any:
    """Read a number, word, truth value, null, list or mapping, as YAML would read it.

    Args:
        text: What was typed.
        source: What an error message calls it.
        may_be_mapping: Whether the key has names of its own below it, and is no section.
    """
    node = _compose(text, source)
    if node is None:
        raise UserError(f"{source} has no value", hint="write null to unset a key")
    if isinstance(node, yaml.MappingNode) and not may_be_mapping:
        raise UserError(f"{source} is a mapping", hint="set one key at a time: section.key=value")
    reader = _Reader(source)
    value = reader.value(node, ())
    if reader.problems:
        raise UserError("\n".join(reader.problems))
    return value


def shown(path: Path) -> str:
    """Write the path as messages show it: relative when it lies below the working directory."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def shortened(value: object) -> str:
    """Write a value as Python does, cut where it is too long for a message."""
    try:
        text = repr(value)
    except ValueError:  # of an integer with more digits than Python writes
        return "a number of more than 4,300 digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        about = "; ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{source}{line}: not valid YAML: {about}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        raise UserError(
            f"{source}:{before.count(chr(10)) + 1}: not valid YAML: the character "
            f"U+{ord(text[error.position]):04X}, which cannot be seen"
        ) from error
    return node


class _Reader:
    """Turns nodes into values, collecting origins and everything that is wrong."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.origins: dict[KeyPath, Origin] = {}
        self.problems: list[str] = []
        self._loader = _Loader("")

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the value of a node that lies at `path`."""
        if isinstance(node, yaml.MappingNode):
            return {key: self.value(item, at) for key, item, at in self._items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _items(
        self, node: yaml.MappingNode, path: KeyPath
    ) -> Iterator[tuple[str, yaml.Node, KeyPath]]:
        lines: dict[str, int] = {}
        for key_node, item in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            at = (*path, key if isinstance(key, str) else "?")
            if not isinstance(key, str) or key == "<<":
                self._complain(key_node, "a key must be a word (merge keys are not read)")
            elif key in lines:
                dotted = ".".join(map(str, at))
                self._complain(key_node, f"key {dotted!r} was already set on line {lines[key]}")
            else:
                lines[key] = line
                self.origins[at] = Origin(f"{self.source}:{line}")
                yield key, item, at

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node)
        except Exception as error:  # a tag may stand before any value: !!bool "zz" is a KeyError
            reason = getattr(error, "problem", None) or f"it is none of {node.tag}"
            self._complain(node, f"cannot read the value {shortened(node.value)}: {reason}")
            return None

    def _complain(self, node: yaml.Node, what: str) -> None:
        self.problems.append(f"{self.source}:{node.start_mark.line + 1}: {what}")
