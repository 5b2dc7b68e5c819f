"""Print what completes commands, flags, presets and knobs in a shell: bash or zsh."""

import shlex
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from alignctl import console
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES, knob_names
from alignctl.config.stages import section_of

app = typer.Typer(**PLAIN)

_SCRIPT = """\
# {command}: put this into {file}
_alignctl() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    local command="" known word words position
    for ((position = 1; position < COMP_CWORD; position++)); do
        word=${{COMP_WORDS[position]}}
        known=$(_alignctl_words "$command")
        if [[ $word != -* && " $known " == *" $word "* ]]; then
            command="${{command:+$command }}$word"
        fi
    done
    words=$(_alignctl_values "$command" "$before")
    if [[ -z $words ]]; then
        words=$(_alignctl_words "$command")
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ ${{#COMPREPLY[@]}} -eq 0 ]]; then
        COMPREPLY=($(compgen -f -- "$current"))
    elif [[ ${{COMPREPLY[0]}} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}}
_alignctl_words() {{
    case $1 in
{words}
    esac
}}
_alignctl_values() {{
    case "$1 $2" in
{values}
    *" --preset") echo {presets} ;;
    esac
}}
complete -o filenames -F _alignctl alignctl
"""

_FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc"}


@app.command(
    "completion",
    help=__doc__,
    epilog=example(
        "alignctl completion bash > ~/.local/share/bash-completion/completions/alignctl",
        "alignctl completion zsh > ~/.alignctl-completion.zsh  # and source it in ~/.zshrc",
    ),
)
def _completion(
    context: typer.Context,
    shell: Annotated[Literal["bash", "zsh"], typer.Argument(help="The shell.")],
) -> None:
    # zsh reads bash's by its own emulation.
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    console.emit((head + render(context.find_root().command, shell)).rstrip())


def render(root: Any, shell: str) -> str:
    """Write the script for a tree of commands; it starts no Python when it completes."""
    commands = list(_walk(root, ()))
    words = [
        f"    {shlex.quote(' '.join(path))}) echo {shlex.quote(' '.join(_words(command, path)))} ;;"
        for path, command in commands
    ]
    values = [
        f"    {shlex.quote(' '.join([*path, flag]))}) echo {shlex.quote(' '.join(choices))} ;;"
        for path, command in commands
        for flag, choices in _choices(command)
    ]
    return _SCRIPT.format(
        command=f"alignctl completion {shell}",
        file=_FILES[shell],
        words="\n".join(words),
        values="\n".join(values),
        presets=shlex.quote(" ".join(presets.names())),
    )


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that lead to it."""
    yield path, command
    below = getattr(command, "commands", {})
    for name in below:
        yield from _walk(below[name], (*path, name))


def _words(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield what may follow a command: those below it, knobs, flags, names of presets."""
    yield from getattr(command, "commands", {})
    if path and section_of(path[-1]) in STAGES:
        yield from (f"{name}=" for name in knob_names(section_of(path[-1])))
    if path[:1] == ("presets",):
        yield from presets.names()
    for parameter in command.params:
        yield from (flag for flag in parameter.opts if flag.startswith("--"))
    yield "--help"


def _choices(command: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the flags of a command that take one of a few words, with the words."""
    for parameter in command.params:
        told = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        words = [str(word) for each in (told, *get_args(told)) for word in _literal(each)]
        for flag in parameter.opts if words else ():
            if flag.startswith("--"):
                yield flag, words


def _literal(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()
