"""What models say to MT-Bench's questions: read from a file, or generated turn by turn."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import model_validator

from alignctl import console
from alignctl.config.generation import RESOURCES, Generation
from alignctl.config.numbers import Count
from alignctl.data.rows.messages import Message
from alignctl.data.rows.prompt_schemas import chat
from alignctl.errors import UserError
from alignctl.evaluation.generation import Answer, Generator, Prompt
from alignctl.evaluation.mt_bench.fastchat_answers import Answers, read_answers, write_answers
from alignctl.evaluation.mt_bench.questions import Question, QuestionId
from alignctl.evaluation.mt_bench.replies import Reply, ReplyCache, file_name, key, open_cache, peek
from alignctl.reporting.progress.answers import AnswersProgress

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
class FileAuthor:
    """Answers that are in a file already."""

    name: str
    path: Path

    def known(self, questions: Sequence[Question]) -> Answers:
        """Read all answers from the file.

        Raises:
            UserError: One is missing.
        """
        return read_answers(self.path, questions)

    def complete(self, questions: Sequence[Question], output: Path) -> Answers:
        """Read all answers from the file; nothing has to be written."""
        return read_answers(self.path, questions)


class ModelAuthor:
    """A model that answers; what it has said is kept at once, and not asked for again.

    The file is named by the weights and all else that decides an answer, so that a model that was
    trained further answers anew.

    Attributes:
        name: In the table.
        generator: The model, ready to be loaded.
        file: What it has said.
    """

    def __init__(self, name: str, generator: Generator, folder: Path) -> None:
        """Find the model's checksums, computed if it has none; no weight is loaded.

        Args:
            name: In the table.
            generator: The model.
            folder: Where answers are kept.
        """
        from alignctl.checkpoints.identity import identity

        self.name = name
        self.generator = generator
        knobs = generator.settings.model_dump(mode="json", exclude=RESOURCES)
        weights = identity(generator.source)
        tokens = generator.tokenizer.fingerprint, generator.end_token_ids
        self.file = folder / file_name(name, weights, *tokens, knobs)

    def known(self, questions: Sequence[Question]) -> Answers | None:
        """Return the answers, if all were given before; None if one is missing."""
        with peek(self.file) as cache:
            said, pending = self.look(cache, questions)
        return None if pending else _texts(said)

    def complete(self, questions: Sequence[Question], output: Path) -> Answers:
        """Return the answers; generate those that are missing, and write all for FastChat.

        Args:
            questions: The questions.
            output: The folder of the evaluation.

        Raises:
            RunError: vLLM failed, or the disk is full. What was answered is kept.
        """
        with open_cache(self.file) as cache:
            said, pending = self.look(cache, questions)
            if pending:
                self._generate(cache, questions)
                said, _ = self.look(cache, questions)
        write_answers(output / "model_answer" / f"{self.name}.jsonl", self.name, said)
        num_endless = sum(r.finish_reason == "length" for found in said.values() for r in found)
        if num_endless:
            limit = self.generator.settings.max_new_tokens
            console.say(f"{self.name}: {num_endless} answers ended after max_new_tokens={limit}")
        return _texts(said)

    def look(
        self, cache: ReplyCache, questions: Sequence[Question]
    ) -> tuple[dict[QuestionId, list[Reply]], list[Prompt]]:
        """Return the replies to each question so far, and the turns that can be asked next."""
        said: dict[QuestionId, list[Reply]] = {question.id: [] for question in questions}
        pending = []
        for turn in range(max(len(question.turns) for question in questions)):
            asked = [q for q in questions if len(q.turns) > turn == len(said[q.id])]
            found = prompts(self.generator, asked, _texts(said), turn)
            for question, prompt in zip(asked, found, strict=True):
                if (reply := cache.get(name_of(prompt))) is not None:
                    said[question.id].append(reply)
                else:
                    pending.append(prompt)
        return said, pending

    def _generate(self, cache: ReplyCache, questions: Sequence[Question]) -> None:
        """Ask until no turn is left: all first turns, then all second ones."""
        said, pending = self.look(cache, questions)
        missing = sum(len(question.turns) - len(said[question.id]) for question in questions)
        num_cut = 0
        with self.generator:
            progress = AnswersProgress(f"{self.name} answering", missing)
            while pending:
                answered = self.generator.generate(pending)
                for prompt, answers in zip(pending, answered, strict=True):
                    cache.add(name_of(prompt), _reply(prompt, answers[0]))
                    progress.advance(len(answers[0].tokens))
                    num_cut += prompt.is_cut
                _, pending = self.look(cache, questions)
        console.say(f"{self.name}: {missing} answers, {progress.tokens_per_second:,.0f} tokens/s")
        if num_cut:
            console.say(f"{self.name}: {num_cut} prompts were too long and lost their start")


Author = FileAuthor | ModelAuthor


def open_author(
    name: str, path: Path, settings: Generation, tokenizer: Path | None, folder: Path
) -> Author:
    """Check a file of answers or a model; no weight is loaded.

    Args:
        name: In the table.
        path: A file of answers (.jsonl), or a model of any kind.
        settings: How a model answers.
        tokenizer: Folder of its tokenizer; None: beside it.
        folder: Where its answers are kept.

    Raises:
        UserError: There is none, or it cannot answer here.
    """
    if path.suffix != ".jsonl":
        return ModelAuthor(name, Generator(path, settings, tokenizer=tokenizer), folder)
    if not path.is_file():
        raise UserError(f"{path}: no such file of answers")
    return FileAuthor(name, path)


def name_of(prompt: Prompt) -> str:
    """Name the cached reply of one model to a prompt."""
    return key(prompt.tokens.tolist(), prompt.number, prompt.temperature)


def prompts(
    generator: Generator,
    questions: Sequence[Question],
    said: Mapping[QuestionId, Sequence[str]],
    turn: int,
) -> list[Prompt]:
    """Build the prompts of one turn of the questions, as the model reads them.

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


def describe_settings(settings: Generation) -> dict[str, object]:
    """Describe how models answer, for the result's file."""
    knobs = settings.model_dump(mode="json", exclude=RESOURCES)
    return knobs if _has_temperature(settings) else knobs | {"temperature": TEMPERATURES}


def _has_temperature(settings: Generation) -> bool:
    """Tell whether the user has chosen one temperature for all categories."""
    return "temperature" in settings.model_fields_set


def _texts(said: Mapping[QuestionId, Sequence[Reply]]) -> dict[QuestionId, list[str]]:
    return {question: [reply.text for reply in replies] for question, replies in said.items()}


def _reply(prompt: Prompt, answer: Answer) -> Reply:
    return Reply(
        text=answer.text,
        finish_reason=answer.finish,
        prompt_tokens=len(prompt.tokens),
        completion_tokens=len(answer.tokens),
        time=time.time(),
    )
