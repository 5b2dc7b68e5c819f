"""Answers side by side: of several runs to one prompt, and of one run as it goes on learning."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.reporting.page.recorded_run import RecordedRun, rows_of

_EPISODES = 4
"""Of a run, spread over it, first and last among them: all of a long one would be gigabytes."""

_PROMPTS = 12
_LONGEST = 2000
"""Characters of a prompt or an answer that are shown."""

_EMPTY_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        by: Who gave it, and when.
        run: The place of its run among those reported; None of a file of answers.
        text: What it says, cut if it is very long.
        remarks: Score, KL and what else is known of it.
    """

    by: str
    run: int | None
    text: str
    remarks: str


@dataclass(frozen=True)
class Asked:
    """One prompt and its answers."""

    prompt: str
    answers: list[Answer]


@dataclass(frozen=True)
class _Column:
    by: str
    run: int | None
    file: Path


def side_by_side(
    runs: Sequence[RecordedRun], files: Sequence[tuple[str, Path]], damaged: dict[Path, list[int]]
) -> list[Asked]:
    """Collect prompts with the answer of each column (episode or file), most answered first.

    Args:
        runs: Those reported; stages that do not sample have no answers.
        files: Answers of `alignctl generate`, each with what it is called.
        damaged: Gets the lines of each file that hold no object.
    """
    columns = [*_episodes(runs), *(_Column(name, None, file) for name, file in files)]
    by_prompt: dict[str, dict[int, Answer]] = defaultdict(dict)
    for number, column in enumerate(columns):
        for row in rows_of(column.file, damaged.setdefault(column.file, [])):
            prompt, answer = _prompt_of(row), _answer_of(row)
            if prompt is not None and answer is not None and number not in by_prompt[prompt]:
                by_prompt[prompt][number] = Answer(
                    column.by, column.run, _cut(answer), _remarks(row)
                )
    # Python's sort keeps the order of prompts that equally many have answered.
    ranked = sorted(by_prompt.items(), key=lambda item: -len(item[1]))
    return [
        Asked(_cut(prompt), [answer for _, answer in sorted(found.items())])
        for prompt, found in _spread(ranked, len(columns))
    ]


def _episodes(runs: Sequence[RecordedRun]) -> Iterator[_Column]:
    for number, run in enumerate(runs):
        files = sorted((run.path / "samples").glob("episode_*.jsonl"))
        last = len(files) - 1
        places = {round(last * n / (_EPISODES - 1)) for n in range(_EPISODES)} if files else set()
        for place in sorted(places):
            episode = files[place].stem.removeprefix("episode_").lstrip("0")
            yield _Column(f"{run.name}, episode {episode}", number, files[place])


def _spread(
    ranked: Sequence[tuple[str, dict[int, Answer]]], num_columns: int
) -> list[tuple[str, dict[int, Answer]]]:
    """Choose the first prompts; if each has one answer, take equally many of every column."""
    if not ranked or len(ranked[0][1]) > 1 or num_columns == 1:
        return list(ranked[:_PROMPTS])
    each = max(1, _PROMPTS // num_columns)
    found = []
    for column in range(num_columns):
        found += [item for item in ranked if column in item[1]][:each]
    return found


def _prompt_of(row: dict[str, Any]) -> str | None:
    for name in ("prompt", "query", "question", "messages"):
        value = row.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            turns = [turn for turn in value if isinstance(turn, dict)]
            return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)
    return None


def _answer_of(row: dict[str, Any]) -> str | None:
    # Beside a response, `answer` is the one that was expected.
    for name in ("response", "answer"):
        value = row.get(name)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, str):
            return first
    return None


_NUMBERS = {"score": "score", "penalty": "penalty", "model_score": "model", "kl": "KL"}
"""Numbers of an answer, and what a reader calls them."""


def _remarks(row: dict[str, Any]) -> str:
    found = []
    for name, label in _NUMBERS.items():
        value = row.get(name)
        is_told = name == "model_score" and value == row.get("score")
        if isinstance(value, int | float) and math.isfinite(value) and not is_told:
            found.append(f"{label} {value:.3g}")
    if isinstance(rule := row.get("rule"), str):
        found.append(f"rule: {rule.replace('_', ' ')}")
    expected = row.get("answer") if "response" in row else row.get("expected")
    if expected is not None:
        found.append(f"expected {_cut(str(expected))}")
    finish = row.get("finish")
    if row.get("is_finished") is False or "length" in (
        finish[:1] if isinstance(finish, list) else [finish]
    ):
        found.append("cut off")
    return " | ".join(found)


def _cut(text: str) -> str:
    # Control characters are no text, and not allowed on a page.
    text = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text)
    text = _EMPTY_LINES.sub("\n", text).strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [... {len(text):,} characters]"
