"""What a judge is asked: templates in FastChat's format, filled with questions and answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignctl.data.rows.files import read_rows
from alignctl.errors import UserError
from alignctl.evaluation.mt_bench.questions import Question

Mode = Literal["single", "pairwise"]

_NAMES = {"single": ("single-v1", "single-math-v1"), "pairwise": ("pair-v2", "pair-math-v1")}
"""FastChat's template without a reference, and the one with it."""

FORMS: dict[Mode, str] = {
    "single": r"[^\[]{0,400}Rating: \[\[([1-9]|10)\]\]",
    "pairwise": r"[^\[]{0,400}\[\[[ABC]\]\]",
}
"""Regular expressions of what is asked for, with a short explanation before. A server that keeps a
judge to them makes its replies readable, and not any wiser."""

_MULTI_TURN = "-multi-turn"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A prompt with names in braces where texts go."""

    name: str
    system: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """What is sent to the judge, and the name of its template."""

    template: str
    system: str
    user: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """Two messages of the chat: the system's and the user's."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
        ]


def load_templates(file: Path, mode: Mode) -> dict[str, Template]:
    """Read the four templates of a mode: with and without a reference, for both turns.

    Raises:
        UserError: The file is not one of templates, or one is missing.
    """
    found = {}
    for row in read_rows([file]):
        values = [row.record.get(key) for key in ("name", "system_prompt", "prompt_template")]
        if not all(isinstance(value, str) for value in values):
            raise UserError(
                f"{row.where}: not a judge prompt in FastChat's format",
                'a row is {"name": "single-v1", "system_prompt": "...", "prompt_template": "..."}',
            )
        template = Template(*map(str, values))
        found[template.name] = template
    wanted = [f"{name}{suffix}" for name in _NAMES[mode] for suffix in ("", _MULTI_TURN)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{file}: has no judge prompt named {', '.join(missing)}",
            f"{mode} grading needs {', '.join(wanted)}",
        )
    return {name: found[name] for name in wanted}


def render(
    templates: Mapping[str, Template],
    mode: Mode,
    question: Question,
    turn: int,
    answers: Sequence[Sequence[str]],
) -> Prompt:
    """Fill the template that a question and turn call for.

    Args:
        templates: Those of the mode.
        mode: What is asked of the judge.
        question: The question.
        turn: 1 or 2; the second shows the first one too.
        answers: The turns of each answer: one answer, or A's and B's.

    Raises:
        UserError: The template has a name in braces that is not known.
    """
    texts = {f"question_{n}": text for n, text in enumerate(question.turns, 1)}
    texts["question"] = question.turns[0]
    for letter, turns in zip(_letters(mode), answers, strict=True):
        texts[f"answer{letter}"] = turns[0]
        texts |= {f"answer{letter}_{n}": text for n, text in enumerate(turns, 1)}
    if question.needs_reference and question.reference is not None:
        texts |= {f"ref_answer_{n}": text for n, text in enumerate(question.reference, 1)}
    name = _NAMES[mode][question.needs_reference] + (_MULTI_TURN if turn == 2 else "")
    template = templates[name]
    return Prompt(name, template.system, _fill(template, texts))


def _letters(mode: Mode) -> tuple[str, ...]:
    return ("",) if mode == "single" else ("_a", "_b")


def _fill(template: Template, texts: Mapping[str, str]) -> str:
    """Put texts into their places, once: braces inside of a text stay as they are."""
    unknown = [name for name in _PLACEHOLDER.findall(template.text) if name not in texts]
    if unknown:
        raise UserError(
            f"judge prompt {template.name!r}: nothing is known by the name {{{unknown[0]}}}",
            f"known here are {', '.join(sorted(texts))}",
        )
    filled = _PLACEHOLDER.sub(lambda found: texts[found[1]], template.text)
    # JSON can name halves of characters, which no request can hold.
    return filled.encode("utf-8", "replace").decode("utf-8")
