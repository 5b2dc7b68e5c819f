"""Where presets are: the ones that come with the package by name, a user's own by path."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from alignctl.errors import UserError

ALIASES = {"bloom-7b1": "bloom-7b"}
"""Other names that people look for."""


def folder() -> Path:
    """Return the folder of the presets that come with the package."""
    return Path(str(files("alignctl").joinpath("presets")))


def names() -> list[str]:
    """List the presets that come with the package, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def recipes() -> list[str]:
    """List what presets of one family share, by names such as recipes/llama2, sorted."""
    return sorted(f"recipes/{path.stem}" for path in (folder() / "recipes").glob("*.yaml"))


def is_ours(name: str) -> bool:
    """Tell whether a name is that of a preset that comes with the package."""
    return ALIASES.get(name, name) in names()


def title(name: str) -> str:
    """Read the first line of a preset's header comment, which names its model."""
    with (folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip()


def find(name_or_file: str, beside: Path = Path()) -> Path:
    """Find the file of a preset or a recipe.

    Args:
        name_or_file: A name such as llama2-7b or recipes/llama2, or the path of a YAML file.
        beside: The folder that a path is relative to.

    Raises:
        UserError: When there is neither; it names the nearest preset and lists all of them.
    """
    ours = recipes()
    name = ALIASES.get(name_or_file, name_or_file)
    if name in ours:
        return folder() / f"{name}.yaml"
    is_file = name.endswith((".yaml", ".yml"))
    if is_file or ("/" in name and not name.startswith("recipes/")):
        return beside / name
    known = names()
    if name in known:
        return folder() / f"{name}.yaml"
    near = get_close_matches(name, [*known, *ALIASES, *ours], n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"there is no preset {name!r}{guess}",
        hint=f"presets: {', '.join(known)}; recipes to extend: {', '.join(ours)}; "
        "or give the path of a .yaml file",
    )
