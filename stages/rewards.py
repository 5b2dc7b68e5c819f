"""Try a reward of one's own on answers that rows have, before a GPU is needed.

    alignctl rewards test my_reward.py --data rows.jsonl

Rows are prompts with an answer of their own: `response` (as `alignctl generate` writes it, also a
list of several), the last turn of `messages` where it is the assistant's, or `answer`. The function
gets what it gets in a run, in a process that is killed when it takes too long.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignctl import console
from alignctl.config.rewards import RewardFunction
from alignctl.data.rows.files import Row
from alignctl.errors import RunError, UserError
from alignctl.evaluation import prompts, results
from alignctl.reporting.progress.alive import alive
from alignctl.rewards.functions import Functions
from alignctl.rewards.results import Answer, Result
from alignctl.stages.shared.own_rewards import check_functions, make_answer

_SHOWN = 5


def test(
    function: RewardFunction, data: Path, *, limit: int | None, workers: int, as_json: bool
) -> None:
    """Score rows' own answers, and print what came of it.

    Args:
        function: The reward.
        data: The rows.
        limit: Only so many rows, the first ones; None: all.
        workers: Processes of a function in a file.
        as_json: Print JSON, not a table.

    Raises:
        UserError: The file, or a row, is wrong; nothing was scored.
        RunError: Not one answer got a score.
    """
    check_functions([function])
    rows, answers = _read(data, limit)
    with alive("scoring"), Functions([function], workers) as functions:
        functions.check()
        started = time.perf_counter()
        [found] = functions.results(answers)
        seconds = time.perf_counter() - started
    measured = measure(found, seconds)
    console.emit(json.dumps(measured, indent=2) if as_json else _table(function, measured))
    failed = [(row, each) for row, each in zip(rows, found, strict=True) if each.score is None]
    for row, each in failed[:_SHOWN]:
        console.say(f"{row.where}: {each.failure}")
    if len(failed) > _SHOWN:
        console.say(f"and {len(failed) - _SHOWN:,} more")
    if len(failed) == len(found):
        raise RunError(f"{function.place}: none of {len(found):,} answers got a score")


def _read(data: Path, limit: int | None) -> tuple[list[Row], list[Answer]]:
    """Read the answers of rows, each with its row."""
    file = prompts.read(data, limit)
    rows, answers = [], []
    for row, question in zip(file.rows, file.questions, strict=True):
        for completion in own_answers(row):
            rows.append(row)
            answers.append(make_answer(row, question, completion))
    return rows, answers


def own_answers(row: Row) -> list[str]:
    """List the answers that a row of prompts has itself.

    Raises:
        UserError: It has none.
    """
    response = row.record.get("response")
    if isinstance(response, list) and response and all(isinstance(each, str) for each in response):
        return response
    messages = row.record.get("messages", row.record.get("prompt"))
    last = messages[-1] if isinstance(messages, list) and messages else {}
    said = (
        last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
    )
    for found in (response, said, row.record.get("answer")):
        if isinstance(found, str) and found.strip():
            return [found]
        if isinstance(found, int | float) and not isinstance(found, bool):
            return [str(found)]
    raise UserError(
        f"{row.where}: this row has no answer of its own to score",
        "it is read from response, from an assistant's last turn in messages, or from answer; "
        "alignctl generate writes rows with response",
    )


def measure(found: Sequence[Result], seconds: float) -> dict[str, Any]:
    """Compute what is told of the results of a reward, as JSON values."""
    scores = [each.score for each in found if each.score is not None]
    names = dict.fromkeys(name for each in found for name in each.metrics)
    told = {name: [each.metrics[name] for each in found if name in each.metrics] for name in names}
    return {
        "answers": len(found),
        "failed": len(found) - len(scores),
        "retried": sum(each.retries for each in found),
        "seconds": seconds,
        "numbers": {
            name: {
                "mean": statistics.fmean(values),
                "std": statistics.pstdev(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in {"score": scores, **told}.items()
            if values
        },
    }


def _table(function: RewardFunction, measured: dict[str, Any]) -> str:
    per_answer = 1000 * measured["seconds"] / measured["answers"]
    rows = {
        "answers": [f"{measured['answers']:,}"],
        "failed": [f"{measured['failed']:,}"],
        **({"asked again": [f"{measured['retried']:,}"]} if function.url else {}),
        "seconds": [f"{measured['seconds']:.2f}"],
        "ms per answer": [f"{per_answer:.2f}"],
    }
    counts = results.table("", [function.called], rows)
    columns = ("mean", "std", "min", "max")
    numbers = {
        name: [f"{values[each]:.4g}" for each in columns]
        for name, values in measured["numbers"].items()
    }
    return f"{counts}\n\n{results.table('', columns, numbers)}" if numbers else counts
