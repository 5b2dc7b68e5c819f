r"""The row schemas of preferences, and the one comparison type that all of them become.

- scored `{query, response: [...], score: [...]}`: any number of answers, a higher score is better;
  the query is written as in fine-tuning. With `prompt` in its place, the prompt stays as it is.
- pair `{prompt, chosen, rejected}` or `{prompt, response, rejected}`: texts that follow the prompt.
- HH text pair `{chosen, rejected}`: two whole texts with `\n\nHuman:` and `\n\nAssistant:` turns.
  The prompt is what they have in common, up to its last `\n\nAssistant:`; all the rest is answer,
  also where it says `Assistant:` again. Texts that part before a human turn have two prompts.
- chat pair `{chosen, rejected}`, with or without `prompt`: lists of `{role, content}`. They are
  whole conversations, or begin with an assistant turn and follow `prompt`, a list or text.

Of a pair, the first answer has score 1 and the second 0. `system`, `history` and `tools` are read
where fine-tuning reads them. The first row decides, and every row must be of its schema; further
keys are counted.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import (
    CONTEXT_KEYS,
    Message,
    after_system,
    chat_at,
    messages_at,
    refuse_context,
    system_at,
    tools_at,
)
from alignctl.data.rows.schemas import (
    ASSISTANT_MARKER,
    HUMAN,
    Conversation,
    Schema,
    first_fitting,
    hh_conversation,
    own_text,
    query_turn,
    single_turn,
)
from alignctl.data.rows.values import check_text, mismatch, text_at
from alignctl.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """A row of preferences, whatever its schema was.

    Attributes:
        where: `file:line` for messages.
        answers: For each answer the conversation that ends with it.
        scores: How good each answer is; finite.
    """

    where: str
    answers: tuple[Conversation, ...]
    scores: tuple[float, ...]

    @property
    def characters(self) -> int:
        """Characters of all conversations."""
        return sum(answer.characters for answer in self.answers)


def preference_schema_of(row: Row) -> Schema[Comparison]:
    """Return the schema that this (first) row has."""
    return first_fitting(row, _SCHEMAS)


def _parse_scored_query(row: Row) -> Comparison:
    query = text_at(row, "query")
    return _score(row, lambda response: query_turn(row, query, response))


def _parse_scored_prompt(row: Row) -> Comparison:
    prompt = text_at(row, "prompt")
    return _score(row, lambda response: single_turn(row, prompt, response, prompt))


def _score(row: Row, add_answer: Callable[[str], Conversation]) -> Comparison:
    responses, scores = _list_at(row, "response"), _list_at(row, "score")
    if len(responses) != len(scores):
        raise UserError(
            f"{row.where}: response has {len(responses)} entries and score has {len(scores)}",
            "every response needs one score",
        )
    texts = [check_text(row, f"response[{i}]", text) for i, text in enumerate(responses)]
    return Comparison(
        row.where,
        tuple(add_answer(text) for text in texts),
        tuple(_check_score(row, f"score[{i}]", score) for i, score in enumerate(scores)),
    )


def _list_at(row: Row, key: str) -> list[object]:
    values = row.record.get(key)
    if not isinstance(values, list):
        raise mismatch(row, key, values, "a list with one entry per answer")
    return values


def _check_score(row: Row, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mismatch(row, name, value, "a number")
    # Also False for NaN, and for integers that are too large to become a float.
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise UserError(
            f"{row.where}: {name} is {value}, which orders no answers",
            "give a finite score, or remove the answer with its score",
        )
    return float(value)


def _parse_response_rejected(row: Row) -> Comparison:
    return _text_pair(row, "response", "rejected")


def _parse_prompt_pair(row: Row) -> Comparison:
    if isinstance(row.record.get("chosen"), list):
        return _parse_pair(row)
    return _text_pair(row, "chosen", "rejected")


def _text_pair(row: Row, chosen: str, rejected: str) -> Comparison:
    prompt = text_at(row, "prompt")
    better, worse = (
        single_turn(row, prompt, text_at(row, key), prompt) for key in (chosen, rejected)
    )
    return Comparison(row.where, (better, worse), (1.0, 0.0))


def _parse_pair(row: Row) -> Comparison:
    if isinstance(row.record.get("chosen"), list):
        better, worse = _chat(row, "chosen"), _chat(row, "rejected")
    else:
        better, worse = _hh_pair(row, text_at(row, "chosen"), text_at(row, "rejected"))
    return Comparison(row.where, (better, worse), (1.0, 0.0))


def _hh_pair(row: Row, chosen: str, rejected: str) -> tuple[Conversation, Conversation]:
    refuse_context(row)
    markers = list(ASSISTANT_MARKER.finditer(_common_start(chosen, rejected)))
    *starts, start = [marker.end() for marker in markers] or [0]
    if not markers or any(HUMAN.rstrip() in text[start:] for text in (chosen, rejected)):
        return hh_conversation(row, chosen), hh_conversation(row, rejected)
    *prompt, _ = hh_conversation(row, chosen[:start]).messages

    def add_answer(text: str) -> Conversation:
        answer = Message("assistant", text[start:].strip())
        return Conversation(
            row.where, (*prompt, answer), own_text(text, [(start, len(text))], starts)
        )

    return add_answer(chosen), add_answer(rejected)


def _common_start(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one[:length]


def _chat(row: Row, key: str) -> Conversation:
    refuse_context(row, ("history",))
    messages = messages_at(row, key)
    if messages and messages[0].role == "assistant":
        messages = (*_read_question(row), *messages)
    else:
        messages = after_system(row, key, messages)
    return Conversation(row.where, messages, None, tools_at(row))


def _read_question(row: Row) -> tuple[Message, ...]:
    if isinstance(row.record.get("prompt"), list):
        return chat_at(row, "prompt")
    return (*system_at(row), Message("user", text_at(row, "prompt")))


_SCHEMAS: tuple[Schema[Comparison], ...] = (
    Schema(("query", "response", "score"), _parse_scored_query, CONTEXT_KEYS),
    Schema(("prompt", "response", "score"), _parse_scored_prompt, CONTEXT_KEYS),
    Schema(("prompt", "chosen", "rejected"), _parse_prompt_pair, CONTEXT_KEYS),
    Schema(("prompt", "response", "rejected"), _parse_response_rejected, CONTEXT_KEYS),
    Schema(("chosen", "rejected"), _parse_pair, CONTEXT_KEYS),
)
