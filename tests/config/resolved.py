"""The resolved values of our presets, kept in a file: what they give is changed on purpose only.

`python -m tests.config.resolved` writes `resolved.json` beside this module: for each key of each
stage its value, and below it the presets that have another one.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignctl.config.presets import library as presets
from alignctl.config.presets.render import render_preset

FILE = Path(__file__).with_name("resolved.json")

ABSENT = "is not there"
"""The value of a key in a section that is off, and of a section that is on."""

Values = dict[str, dict[str, Any]]
"""Dotted key, with its stage, to the name of a preset to its value."""


def resolve() -> Values:
    """The values of all presets as `alignctl presets show` prints them."""
    found: Values = {}
    for name in presets.names():
        for key, value in _leaves(json.loads(render_preset(name, [], as_json=True)), ""):
            found.setdefault(key, {})[name] = value
    # Sections of some presets are off in others.
    return {
        key: {name: by_name.get(name, ABSENT) for name in presets.names()}
        for key, by_name in found.items()
    }


def read() -> Values:
    """The values as they were when the file was written."""
    kept = json.loads(FILE.read_text())
    names = kept.pop("presets")
    return {
        key: {name: others.get(name, usual) for name in names}
        for key, (usual, others) in kept.items()
    }


def write(values: Values) -> None:
    """Write the file, one line for each key."""
    lines = [f'"presets": {json.dumps(sorted(next(iter(values.values()))))}']
    for key, by_name in values.items():
        texts = {name: json.dumps(value) for name, value in by_name.items()}
        usual = Counter(texts.values()).most_common(1)[0][0]
        others = {name: by_name[name] for name, text in texts.items() if text != usual}
        lines.append(f"{json.dumps(key)}: [{usual}, {json.dumps(others)}]")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    write(resolve())
