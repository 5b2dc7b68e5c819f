"""A preset and the files that it extends as one document; each value knows its file and line.

What a file says takes the place of what it extends: sections are merged key by key, anything else
is replaced, tables of the user's own names too. `null` is a value like any other: it turns a knob
or a section off. Within a file a stage's own section takes the place of the file's `layout`, which
every stage is told.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from alignctl.config.precision import Precision
from alignctl.config.presets import library as presets
from alignctl.config.presets.document import (
    Document,
    KeyPath,
    Origin,
    parse_yaml,
    read_yaml,
    shown,
)
from alignctl.config.presets.problems import describe, is_table, quoted, refuse
from alignctl.config.rollout import Rollout
from alignctl.config.sections import WARMUPS, Launch, Parallel, Section
from alignctl.errors import UserError

DEEPEST = 8
"""Files that may extend each other in a row."""


class StageLayout(Section):
    """The `layout` section of a preset: what each stage is told unless its own section differs.

    A stage takes the sections that it has: `rollout` is of those that sample. `convert` takes tp
    and pp of `parallel`.
    """

    precision: Precision | None = None
    """As of a stage."""

    parallel: Parallel | None = None
    """As of a stage."""

    launch: Launch | None = None
    """As of a stage."""

    rollout: Rollout | None = None
    """As of a stage that samples."""


class _LayoutAlone(Section):
    layout: StageLayout


def read(path: Path, stages: Mapping[str, type[BaseModel]], *, text: str | None = None) -> Document:
    """Read a preset with all that it extends; the document has no `extends` and no `layout`.

    Args:
        path: The preset's file.
        stages: The sections that take the layout, with the classes that they become.
        text: What the file would hold if there were one; None: there is one.

    Raises:
        UserError: When a file cannot be read, or extends what it cannot; it names file and line.
    """
    whole, layout = Document({}, {}), Document({}, {})
    files = _in_order(path, text)
    for distance, file in zip(reversed(range(len(files))), files, strict=True):
        for at, origin in file.origins.items():
            file.origins[at] = Origin(origin.text, distance=distance)
        own = _layout_of(file)
        layout = merge(layout, own)
        for section in ("convert", *stages):
            below = whole.tree.get(section)
            if isinstance(below, dict):
                taken = own
            elif section == "convert" or isinstance(file.tree.get(section), dict):
                taken = layout
            else:
                continue
            whole = merge(whole, _told(taken, section, stages))
        whole = merge(whole, _without(file, ("extends", "layout")), stages)
    return whole


def merge(
    below: Document, above: Document, stages: Mapping[str, type[BaseModel]] = MappingProxyType({})
) -> Document:
    """Lay one document over another: mappings are merged, anything else is replaced.

    Of the knobs that say how long a warm-up is, one takes the place of the others below it; so does
    micro_batch_size of micro_batch_tokens.

    Args:
        below: What is extended.
        above: What extends it.
        stages: The classes of sections, which know the mappings that are replaced.
    """
    origins = dict(below.origins)

    def forget(at: KeyPath) -> None:
        for each in [each for each in origins if each[: len(at)] == at]:
            del origins[each]

    def is_one(at: KeyPath) -> bool:
        stage, *rest = map(str, at)
        return bool(rest) and stage in stages and is_table(stages[stage], ".".join(rest))

    def lay(old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        merged = dict(old)
        if any(new.get(name) is not None for name in WARMUPS):
            for name in set(WARMUPS) & set(old):
                del merged[name]
                forget((*path, name))
        if new.get("micro_batch_size") is not None and "micro_batch_tokens" in old:
            del merged["micro_batch_tokens"]
            forget((*path, "micro_batch_tokens"))
        for key, value in new.items():
            before = merged.get(key)
            if isinstance(before, dict) and isinstance(value, dict) and not is_one((*path, key)):
                merged[key] = lay(before, value, (*path, key))
                continue
            if isinstance(before, dict | list):
                forget((*path, key))
            merged[key] = value
        return merged

    tree = lay(below.tree, above.tree, ())
    return Document(tree, origins | above.origins)


def bases(document: Document) -> list[str]:
    """Return the names and paths that a file extends, as it writes them.

    Raises:
        UserError: When they are neither a word nor a list of words.
    """
    found = document.tree.get("extends", [])
    names = [found] if isinstance(found, str) else found
    if isinstance(names, list) and all(isinstance(each, str) and each for each in names):
        return names
    raise UserError(
        f"{document.origins[('extends',)].text}: extends must be the name of a preset or the path "
        f"of a file, or a list of them; found {quoted(found)}"
    )


def copy(name_or_file: str, target: Path) -> None:
    """Copy a preset to a new file, which extends what the preset extends.

    Raises:
        UserError: When there is no such preset, when the target exists or cannot be written, or
            when what is extended would not be found from there.
    """
    source = presets.find(name_or_file)
    document = read_yaml(source)
    for name in bases(document):
        here = document.origins[("extends",)].text
        base = _find(name, source, here).resolve()
        if base != presets.find(name, target.parent).resolve():
            raise UserError(
                f"{here}: {name}, which {shown(source)} extends, would not be found from {target}",
                hint=f"copy it into {shown(source.parent)}, or extend an absolute path",
            )
    try:
        text = source.read_bytes()
        with target.open("xb") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{target} exists already", hint="give the name of a new file") from error
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror}") from error


def _in_order(path: Path, text: str | None) -> list[Document]:
    """Read the files that a preset consists of, each once, after those that it extends."""
    found: dict[Path, Document] = {}
    trail: list[Path] = []

    def collect(file: Path, text: str | None = None) -> None:
        document = read_yaml(file) if text is None else parse_yaml(text, shown(file))
        trail.append(file)
        for name in bases(document):
            here = document.origins[("extends",)].text
            base = _find(name, file, here)
            way = " -> ".join(shown(each) for each in [*trail, base])
            if base.resolve() in [each.resolve() for each in trail]:
                raise UserError(f"{here}: extends {name} goes round in a circle: {way}")
            if len(trail) == DEEPEST:
                raise UserError(f"{here}: more than {DEEPEST} files extend each other: {way}")
            if base.resolve() not in found:
                collect(base)
        trail.pop()
        found[file.resolve()] = document

    collect(path, text)
    return list(found.values())


def _find(name: str, file: Path, here: str) -> Path:
    try:
        base = presets.find(name, file.parent)
    except UserError as error:
        raise UserError(f"{here}: extends: {error.message}", hint=error.hint) from error
    if not base.is_file():
        raise UserError(
            f"{here}: extends {name}: there is no file {shown(base)}",
            hint="a path is relative to the file that extends it",
        )
    return base


def _layout_of(file: Document) -> Document:
    """Check the `layout` of a file by itself, so that its mistakes are said once, not by stage."""
    if "layout" not in file.tree:
        return Document({}, {})
    try:
        _LayoutAlone.model_validate({"layout": file.tree["layout"]})
    except ValidationError as error:
        here = file.origins[("layout",)]
        if problems := describe(error, _LayoutAlone, file.origins, here, is_part=True):
            raise refuse(problems) from error
    return part(file, "layout")


def part(document: Document, section: str) -> Document:
    """Take one section of a document by itself."""
    origins = {at[1:]: origin for at, origin in document.origins.items() if at[0] == section}
    origins.pop((), None)
    return Document(document.tree[section], origins)


def _without(document: Document, sections: Collection[str]) -> Document:
    return Document(
        {key: value for key, value in document.tree.items() if key not in sections},
        {at: origin for at, origin in document.origins.items() if at[0] not in sections},
    )


def _told(layout: Document, section: str, stages: Mapping[str, type[BaseModel]]) -> Document:
    """Make a document with one section: what a layout says to that section."""
    if section == "convert":
        layout = part(layout, "parallel") if layout.tree.get("parallel") else Document({}, {})
        layout = _without(layout, set(layout.tree) - {"tp", "pp"})
    else:
        layout = _without(layout, set(layout.tree) - set(stages[section].model_fields))
    if not layout.tree:
        return layout
    return Document(
        {section: layout.tree}, {(section, *at): origin for at, origin in layout.origins.items()}
    )
