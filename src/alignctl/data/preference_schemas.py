r"""The row schemas of preferences, and the one comparison type that all of them become.

- scored `{query, response: [...], score: [...]}`: any number of answers, a higher score is better;
  the query is wrapped as in fine-tuning, unless it ends with an `Assistant:` marker of its own, as
  in the tutorials' reward data. With `prompt` in its place, the prompt stays as it is.
- pair `{prompt, chosen, rejected}` or `{prompt, response, rejected}`: texts that follow the prompt.
- HH text pair `{chosen, rejected}`: two whole texts with `\n\nHuman: ` and `\n\nAssistant: ` turns.
  The prompt is what they have in common, up to its last `\n\nAssistant:`; all the rest is answer,
  also where it says `Assistant:` again. Texts that part before a human turn have two prompts.
- chat pair `{chosen, rejected}`, with or without `prompt`: lists of `{role, content}`. They are
  whole conversations, or begin with an assistant turn and follow `prompt`, a list or text.

Of a pair, the first answer has score 1 and the second 0. The first row decides, and every row must
be of its schema. Further keys are ignored.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from alignctl.data.files import Row
from alignctl.data.schemas import (
    ASSISTANT,
    HUMAN,
    Conversation,
    Message,
    Schemas,
    checked_text,
    hh_conversation,
    messages_at,
    mismatch,
    own_text,
    parser_of,
    single_turn,
    text_at,
)
from alignctl.errors import UserError

_ASSISTANT_MARKER = re.compile(r"(?:\A|\n\n)Assistant: ?")
_ENDS_WITH_MARKER = re.compile(_ASSISTANT_MARKER.pattern + r"\Z")


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


def preference_schema_of(row: Row) -> Callable[[Row], Comparison]:
    """The parser for the schema that this (first) row has."""
    return parser_of(row, _SCHEMAS)


def _parse_scored_query(row: Row) -> Comparison:
    query = text_at(row, "query")
    is_written = _ENDS_WITH_MARKER.search(query) is not None
    return _scored(row, query, query if is_written else HUMAN + query + ASSISTANT)


def _parse_scored_prompt(row: Row) -> Comparison:
    prompt = text_at(row, "prompt")
    return _scored(row, prompt, prompt)


def _scored(row: Row, user: str, prompt: str) -> Comparison:
    responses, scores = _list_at(row, "response"), _list_at(row, "score")
    if len(responses) != len(scores):
        raise UserError(
            f"{row.where}: response has {len(responses)} entries and score has {len(scores)}",
            "every response needs one score",
        )
    texts = [checked_text(row, f"response[{i}]", text) for i, text in enumerate(responses)]
    return Comparison(
        row.where,
        tuple(single_turn(row, user, text, prompt) for text in texts),
        tuple(_checked_score(row, f"score[{i}]", score) for i, score in enumerate(scores)),
    )


def _list_at(row: Row, key: str) -> list[object]:
    values = row.record.get(key)
    if not isinstance(values, list):
        raise mismatch(row, key, values, "a list with one entry per answer")
    return values


def _checked_score(row: Row, name: str, value: object) -> float:
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
    markers = list(_ASSISTANT_MARKER.finditer(_common_start(chosen, rejected)))
    start = markers[-1].end() if markers else 0
    if not markers or any(HUMAN.rstrip() in text[start:] for text in (chosen, rejected)):
        return hh_conversation(row, chosen), hh_conversation(row, rejected)
    *prompt, _ = hh_conversation(row, chosen[:start]).messages

    def answered(text: str) -> Conversation:
        answer = Message("assistant", text[start:].strip())
        return Conversation(row.where, (*prompt, answer), own_text(text, [(start, len(text))]))

    return answered(chosen), answered(rejected)


def _common_start(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one[:length]


def _chat(row: Row, key: str) -> Conversation:
    messages = messages_at(row, key)
    if messages and messages[0].role == "assistant":
        messages = (*_chat_prompt(row), *messages)
    return Conversation(row.where, messages, None)


def _chat_prompt(row: Row) -> tuple[Message, ...]:
    if isinstance(row.record.get("prompt"), list):
        return messages_at(row, "prompt")
    return (Message("user", text_at(row, "prompt")),)


_SCHEMAS: Schemas[Comparison] = (
    (("query", "response", "score"), _parse_scored_query),
    (("prompt", "response", "score"), _parse_scored_prompt),
    (("prompt", "chosen", "rejected"), _parse_prompt_pair),
    (("prompt", "response", "rejected"), _parse_response_rejected),
    (("chosen", "rejected"), _parse_pair),
)
