"""Answers of models to MT-Bench's questions, in files that FastChat reads and writes too."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignctl import atomic
from alignctl.errors import UserError
from alignctl.evaluation.mt_bench.questions import Question, QuestionId, read_turns
from alignctl.evaluation.mt_bench.replies import Reply, key

Answers = Mapping[QuestionId, Sequence[str]]
"""What a model said, turn by turn, to each question."""


def read_answers(file: Path, questions: Sequence[Question]) -> dict[QuestionId, tuple[str, ...]]:
    """Read the answers of one model; of several rows with one question the last one counts.

    Raises:
        UserError: The file is not one of answers, or a question has none.
    """
    found = dict(read_turns(file))
    missing = [q for q in questions if len(found.get(q.id, ())) < len(q.turns)]
    if missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(questions)} questions have no answer to every turn, "
            f"the first of them is question {missing[0].id}",
            "answers belong to other questions? --questions FILE; or judge fewer: --limit N",
        )
    return {question.id: found[question.id] for question in questions}


def write_answers(file: Path, model: str, said: Mapping[QuestionId, Sequence[Reply]]) -> None:
    """Write the answers of one model, all or none; the same answers make the same file."""
    lines = []
    for question, replies in said.items():
        turns = [reply.text for reply in replies]
        row = {
            "question_id": question,
            "answer_id": key(model, question, turns)[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": max(reply.time for reply in replies),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, "".join(lines))
