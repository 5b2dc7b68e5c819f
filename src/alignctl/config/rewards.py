"""Rewards of one's own: functions in Python files, and servers that score."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from alignctl.config.numbers import Real
from alignctl.config.sections import FilePath, Section
from alignctl.config.urls import find_url_problem
from alignctl.errors import UserError
from alignctl.user_files import read_text

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}\Z")
_TAKEN = ("rule", "model")
_ARGUMENTS = ("prompt", "completion", "row")
_MOST_BYTES = 1 << 24


class RewardFunction(Section):
    """A reward of one's own, which is added to the others: one of `file` and `url`."""

    file: FilePath | None = None
    """A Python file; its folder can be imported from. null: url has the reward."""

    name: str = "score"
    """The function in the file, of (prompt, completion, row) to a number, or to a mapping of score
    and of other numbers, which are told. Beside url only what the metrics call it."""

    label: str | None = None
    """What metrics, samples and messages call it; null: as name does."""

    url: str | None = None
    """A server that is sent JSON by POST, such as http://127.0.0.1:8000/score."""

    weight: Real = 1.0
    """What its scores are multiplied by, before they are added to the others'; 0: they are told,
    and teach nothing."""

    batched: bool = False
    """Whether a call scores many answers: it gets three lists, of at most 64, and gives one."""

    timeout_seconds: Annotated[float, Field(gt=0, le=24 * 3600)] = 10.0
    """Seconds by the clock for a call; a function that takes longer is killed, a server is asked
    again, at most three times."""

    failed: Real | None = None
    """The score of an answer that it gives none: it raised, took too long, or returned no finite
    number. null: the mean of its scores of the other answers to the prompt (of the episode, where
    there is none), which moves nothing."""

    @property
    def called(self) -> str:
        """Name in metrics, samples and messages."""
        return self.label or self.name

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self.url or f"{self.file}:{self.name}"

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        if (self.file is None) == (self.url is None):
            state = "neither" if self.file is None else "both"
            yield f"{state} of file and url given: a reward is a Python file or a server"
        if not self.name.isidentifier():
            yield f"name {self.name!r} is not the name of a function"
        if not _LABEL.match(self.called):
            yield f"label {self.called!r}: a label is letters, digits and _, 40 at most"
        elif self.called in _TAKEN:
            yield f"label {self.called!r} is alignctl's own; give another one: label: my_reward"
        if self.url is not None and (problem := find_url_problem("url", self.url, may_ask=True)):
            yield problem


def label_problems(functions: Sequence[RewardFunction], key: str) -> list[str]:
    """List labels that several rewards have, a line each.

    Args:
        functions: The rewards.
        key: What configures them, for the message.
    """
    labels = [each.called for each in functions]
    return [
        f"{key}: {labels.count(label)} rewards are called {label!r}; give them labels: label: ..."
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]


def file_problems(functions: Sequence[RewardFunction]) -> list[str]:
    """List what is wrong with the files of rewards, a line each: nothing in them is run."""
    problems = []
    for each in functions:
        if each.file is not None:
            try:
                check_source(each.file, each.name)
            except UserError as error:
                hint = f" ({error.hint})" if error.hint else ""
                problems.append(f"{error.message}{hint}")
    return problems


def check_source(file: Path, name: str) -> None:
    """Look for a function in a Python file, without running it.

    Args:
        file: The file.
        name: The function.

    Raises:
        UserError: The file is not there or cannot be parsed; it has no such function, or one that
            does not take a prompt, a completion and a row.
    """
    text = read_text(file, _MOST_BYTES)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        where = f"{file}:{error.lineno}" if error.lineno else str(file)
        raise UserError(f"{where}: not valid Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{file}: not valid Python: {error}") from error
    found = [each for each in tree.body if name in _names_bound(each)]
    if not found:
        known = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
        has = f"its functions: {', '.join(known)}" if known else "it has no function"
        raise UserError(f"{file}: no function {name!r} in it; {has}", "name one: name: FUNCTION")
    last = found[-1]
    if isinstance(last, ast.AsyncFunctionDef):
        raise UserError(f"{file}:{last.lineno}: {name} is async; a plain `def` is expected")
    if isinstance(last, ast.FunctionDef) and not _takes_three(last.args):
        raise UserError(
            f"{file}:{last.lineno}: {name}({ast.unparse(last.args)}) cannot be called with three "
            f"arguments: {', '.join(_ARGUMENTS)}",
            f"write `def {name}({', '.join(_ARGUMENTS)}):`",
        )


def _names_bound(statement: ast.stmt) -> list[str]:
    """List the names that a statement at the top of a module binds, so that they can be called."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.Assign):
        return [each.id for each in statement.targets if isinstance(each, ast.Name)]
    return []


def _takes_three(arguments: ast.arguments) -> bool:
    """Tell whether a function can be called with three arguments by place."""
    most = len(arguments.posonlyargs) + len(arguments.args)
    least = most - len(arguments.defaults)
    needs_names = any(default is None for default in arguments.kw_defaults)
    return least <= 3 and (most >= 3 or arguments.vararg is not None) and not needs_names
