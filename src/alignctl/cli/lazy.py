"""Groups of commands, each of which is imported when it is called.

A command is a module with an `app`; the first line of its text says what the command does, and is
read without importing it. So `--help` is answered at once, and a command may import what it needs
where modules import.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from alignctl import console

PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
}
"""Settings of every `app`: help without colours, so that it can be read anywhere."""


class _Commands(Mapping[str, Any]):
    """The commands of a group by their names; one is imported when it is asked for."""

    def __init__(self, modules: Mapping[str, str], load_app: Callable[[str], typer.Typer]) -> None:
        self._modules = modules
        self._load_app = load_app

    def __getitem__(self, name: str) -> Any:
        return typer.main.get_command(self._load_app(self._modules[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class LazyGroup(TyperGroup):
    """A group of commands that are named by a table.

    Attributes:
        chapters: The commands by what they are for: their names, and their modules.
    """

    chapters: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        modules = {
            name: each for chapter in self.chapters.values() for name, each in chapter.items()
        }
        self.commands: Any = _Commands(modules, self.load_app)

    def load_app(self, module: str) -> typer.Typer:
        """Import the module of a command and return its `app`."""
        app: typer.Typer = import_module(module).app
        return app

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands in their chapters."""
        for title, chapter in self.chapters.items():
            with formatter.section(title):
                formatter.write_dl([(name, summarize(module)) for name, module in chapter.items()])


def make_group(
    name: str, text: str, epilog: str, chapters: Mapping[str, Mapping[str, str]]
) -> typer.Typer:
    """Make a group that prints its help where no command is named.

    Args:
        name: Its name.
        text: What it is for.
        epilog: Examples, for the end of its help.
        chapters: Its commands.
    """
    kind = type("Group", (LazyGroup,), {"chapters": chapters})
    app = typer.Typer(name=name, help=text, epilog=epilog, cls=kind, **PLAIN)

    @app.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            console.emit(context.get_help())

    return app


def summarize(module: str) -> str:
    """Return the first line of a module's text, without importing the module."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    with Path(spec.origin).open(encoding="utf-8") as file:
        return file.readline().strip().strip('"')
