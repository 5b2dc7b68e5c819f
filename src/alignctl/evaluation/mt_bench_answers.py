"""What models say to MT-Bench's questions: read from a file, or generated turn by turn."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from alignctl import atomic, console
from alignctl.config.generation import Generation
from alignctl.config.sections import Count
from alignctl.data.prompt_schemas import chat
from alignctl.data.schemas import Message
from alignctl.errors import UserError
from alignctl.evaluation.answers import Answers, read_answers, write_answers
from alignctl.evaluation.generation import Generator, Prompt
from alignctl.evaluation.questions import Question, QuestionId
from alignctl.reporting.tally import Tally

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's, by category; 0.7 for any other."""

_OTHER_TEMPERATURE = 0.7


class MTBenchGeneration(Generation):
    """How models answer; without `temperature`, by FastChat's temperatures of the categories."""

    max_new_tokens: Count = 1024
    """Most tokens of an answer, its end token included; FastChat's number."""

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if self.samples != 1:
            raise ValueError(f"samples {self.samples}: one answer to a question is judged")
        return self


@dataclass(frozen=True)
class Author:
    """Who has answered, or will.

    Attributes:
        name: In the table.
        path: A file of answers, or a model.
        generator: The model, ready to be loaded; None for a file.
    """

    name: str
    path: Path
    generator: Generator | None


def open_author(name: str, path: Path, settings: Generation, tokenizer: Path | None) -> Author:
    """Looks at a file or a model; no weight is loaded.

    Raises:
        UserError: There is none, or it cannot answer here.
    """
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise UserError(f"{path}: no such file of answers")
        return Author(name, path, None)
    return Author(name, path, Generator(path, settings, tokenizer=tokenizer))


class AnswerFolder:
    """The answers of authors to questions: those that are there, and those still to be given.

    A generated file has another beside it, which says what decided it: so answers of a model that
    was trained further are not taken for its own.
    """

    def __init__(
        self, authors: Sequence[Author], questions: Sequence[Question], output: Path
    ) -> None:
        """Reads what is there.

        Raises:
            UserError: A file of answers lacks one.
        """
        self.authors = authors
        self._questions = questions
        self._folder = output / "model_answer"
        self._origins = {a.name: _origin(a, questions) for a in authors if a.generator}
        found = {author.name: self._read(author) for author in authors}
        self.known = {name: answers for name, answers in found.items() if answers is not None}

    @property
    def missing(self) -> list[Author]:
        """Who has not answered yet."""
        return [author for author in self.authors if author.name not in self.known]

    def complete(self) -> dict[str, Answers]:
        """The answers of all, in the order of the authors; those that are missing are generated.

        Raises:
            RunError: A model cannot answer, or the disk is full.
        """
        for author in self.missing:
            assert author.generator is not None
            with author.generator:
                answers = _generate(author.name, author.generator, self._questions)
            self.keep(author.name, answers)
        return {author.name: self.known[author.name] for author in self.authors}

    def keep(self, name: str, answers: Answers) -> None:
        """Writes what a model has said, and what decided it."""
        write_answers(self._file(name), name, answers)
        origin = json.dumps(self._origins[name], indent=2) + "\n"
        atomic.write_text(self._file(name).with_suffix(".json"), origin)
        self.known[name] = answers

    def _read(self, author: Author) -> Answers | None:
        if author.generator is None:
            return read_answers(author.path, self._questions)
        file, about = self._file(author.name), self._file(author.name).with_suffix(".json")
        if not file.exists() or not about.exists():
            return None
        if json.loads(about.read_text("utf-8")) != self._origins[author.name]:
            console.say(f"{file}: of other weights, settings or questions; answered again")
            return None
        return read_answers(file, self._questions)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '--')}.jsonl"


def _origin(author: Author, questions: Sequence[Question]) -> dict[str, Any]:
    """What decides the answers of a model, as JSON has it."""
    from alignctl.checkpoints.identity import identity

    assert author.generator is not None
    asked = [[question.id, question.number, *question.turns] for question in questions]
    content = {
        "path": str(author.path),
        **identity(author.generator.source),
        "generation": author.generator.settings.model_dump(mode="json"),
        "has_temperature": _has_temperature(author.generator.settings),
        "questions": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
    }
    found: dict[str, Any] = json.loads(json.dumps(content))
    return found


def _generate(
    name: str, generator: Generator, questions: Sequence[Question]
) -> dict[QuestionId, list[str]]:
    """Both turns of all questions, the first turns first: so many are answered at a time."""
    said: dict[QuestionId, list[str]] = {question.id: [] for question in questions}
    num_cut = num_endless = 0
    with Tally(f"{name} answering", sum(len(q.turns) for q in questions)) as tally:
        for turn in range(max(len(question.turns) for question in questions)):
            asked = [question for question in questions if len(question.turns) > turn]
            asked_prompts = prompts(generator, asked, said, turn)
            for question, answers in zip(asked, generator.generate(asked_prompts), strict=True):
                said[question.id].append(answers[0].text)
                num_endless += answers[0].finish == "length"
                tally.add(len(answers[0].tokens))
            num_cut += sum(prompt.is_cut for prompt in asked_prompts)
    if num_cut:
        console.say(f"{name}: {num_cut} prompts were too long and lost their start")
    if num_endless:
        limit = generator.settings.max_new_tokens
        console.say(f"{name}: {num_endless} answers were ended after max_new_tokens = {limit}")
    return said


def prompts(
    generator: Generator,
    questions: Sequence[Question],
    said: Mapping[QuestionId, Sequence[str]],
    turn: int,
) -> list[Prompt]:
    """A turn of questions as a model reads them.

    Args:
        generator: The model.
        questions: The questions.
        said: What it has said to each so far.
        turn: From 0.
    """
    chats = []
    for question in questions:
        messages = []
        for asked, answered in zip(question.turns, said[question.id], strict=False):
            messages += [Message("user", asked), Message("assistant", answered)]
        chats.append(chat([*messages, Message("user", question.turns[turn])], question.where))
    found = zip(questions, generator.prompts(chats), strict=True)
    return [
        replace(
            prompt,
            number=2 * question.number + turn,
            temperature=_temperature(generator.settings, question),
        )
        for question, prompt in found
    ]


def _temperature(settings: Generation, question: Question) -> float | None:
    if _has_temperature(settings):
        return None
    return TEMPERATURES.get(question.category, _OTHER_TEMPERATURE)


def _has_temperature(settings: Generation) -> bool:
    """Whether the user has chosen one for all categories."""
    return "temperature" in settings.model_fields_set
