"""Where presets are: the ones that come with the package by name, a user's own by path."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from alignctl.errors import UserError

ALIASES = {"bloom-7b1": "bloom-7b"}
"""Other names that people look for."""


def folder() -> Path:
    """The folder of the presets that come with the package."""
    return Path(str(files("alignctl").joinpath("presets")))


def names() -> list[str]:
    """The presets that come with the package, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def title(name: str) -> str:
    """The first line of a preset's header comment: what model it is for."""
    with (folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip()


def copy(name_or_file: str, target: Path) -> None:
    """Copy a preset to a new file.

    Raises:
        UserError: When there is no such preset, or when the target exists or cannot be written.
    """
    source = find(name_or_file)
    try:
        text = source.read_bytes()
        with target.open("xb") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{target} exists already", hint="give the name of a new file") from error
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror}") from error


def find(name_or_file: str) -> Path:
    """The file of a preset.

    Args:
        name_or_file: A name such as llama2-7b, or the path of a YAML file.

    Raises:
        UserError: When there is neither; it names the nearest preset and lists all of them.
    """
    if name_or_file.endswith((".yaml", ".yml")) or "/" in name_or_file:
        return Path(name_or_file)
    known = names()
    name = ALIASES.get(name_or_file, name_or_file)
    if name in known:
        return folder() / f"{name}.yaml"
    near = get_close_matches(name_or_file, [*known, *ALIASES], n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"there is no preset {name_or_file!r}{guess}",
        hint=f"presets: {', '.join(known)}; or give the path of a .yaml file",
    )
