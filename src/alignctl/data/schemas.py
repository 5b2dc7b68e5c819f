r"""The row schemas that are understood, and the one conversation type that all of them become.

- prompt/response `{prompt, response}`: its own text is prompt + response.
- query/response `{query, response}`: its own text is `\n\nHuman: {query}\n\nAssistant: ` and the
  response.
- HH text `{chosen}` or `{text}`, with `\n\nHuman: ` and `\n\nAssistant: ` turns: its own text is
  what stands there.
- chat `{messages: [{role, content}, ...]}`: no text of its own, a template writes it.
- instruction `{instruction, input (optional), output}` (Alpaca): a chat of one question, which is
  the instruction and, on the next line, the input.

The first row decides, and every row must be of its schema. Further keys are ignored.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alignctl.data.files import Row
from alignctl.errors import UserError

HUMAN = "\n\nHuman: "
ASSISTANT = "\n\nAssistant: "

# One space after the colon belongs to the marker, so that HH text and query/response rows have
# the same boundary; some HH-like sets have no blank line before the very first turn.
_MARKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (`system`, `user`, `assistant`, ...) and what."""

    role: str
    content: str


@dataclass(frozen=True)
class Rendered:
    """A document as text.

    Attributes:
        text: The whole document, without BOS unless a chat template wrote it.
        spans: Character ranges `[start, end)` that the model learns: the assistant's turns.
        append_eos: Whether the document still needs its EOS; True when no template wrote one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    append_eos: bool


@dataclass(frozen=True)
class Conversation:
    """A row, whatever its schema was.

    Attributes:
        where: `file:line` for messages.
        messages: The turns, for a template to write.
        own: The row's text where its schema fixes the text; None for chat and instruction rows.
    """

    where: str
    messages: tuple[Message, ...]
    own: Rendered | None

    @property
    def characters(self) -> int:
        """Characters of all turns."""
        return sum(len(message.content) for message in self.messages)


def own_text(text: str, spans: list[tuple[int, int]]) -> Rendered:
    """Text that no chat template wrote: it ends with the last assistant turn that is not blank.

    A blank turn teaches only to say nothing; what follows the last learned turn teaches nothing.
    EOS comes once, at the end of the document: the prompts of HH-style generation hold no EOS
    between turns, and the model should see in training what it sees there.
    """
    learned = tuple((start, end) for start, end in spans if text[start:end].strip())
    return Rendered(text[: learned[-1][1]] if learned else "", learned, append_eos=True)


ParsedT = TypeVar("ParsedT")
Schemas = Sequence[tuple[Sequence[str], Callable[[Row], ParsedT]]]
"""The keys that a row of each schema has, and its parser; the first that fits is taken."""


def schema_of(row: Row) -> Callable[[Row], Conversation]:
    """The parser for the schema that this (first) row has."""
    return parser_of(row, _SCHEMAS)


def parser_of(row: Row, schemas: Schemas[ParsedT]) -> Callable[[Row], ParsedT]:
    """The parser of the first schema whose keys a row has."""
    for keys, parser in schemas:
        if all(key in row.record for key in keys):
            return parser
    found = ", ".join(sorted(row.record)) or "none"
    raise UserError(
        f"{row.where}: the keys of this row ({found}) are not of a schema that is known",
        "a row has one of: " + "; ".join(" + ".join(keys) for keys, _ in schemas),
    )


def _parse_prompt(row: Row) -> Conversation:
    prompt, response = text_at(row, "prompt"), text_at(row, "response")
    return single_turn(row, prompt, response, prompt)


def _parse_query(row: Row) -> Conversation:
    query, response = text_at(row, "query"), text_at(row, "response")
    return single_turn(row, query, response, HUMAN + query + ASSISTANT)


def single_turn(row: Row, user: str, response: str, prompt: str) -> Conversation:
    """A question and its answer, whose own text is the prompt, as it is, and the answer."""
    text = prompt + response
    return Conversation(
        row.where,
        (Message("user", user), Message("assistant", response)),
        own_text(text, [(len(prompt), len(text))]),
    )


def _parse_messages(row: Row) -> Conversation:
    return Conversation(row.where, messages_at(row, "messages"), None)


def messages_at(row: Row, key: str) -> tuple[Message, ...]:
    """The messages of a chat under a key."""
    entries = row.record.get(key)
    if not isinstance(entries, list):
        raise mismatch(row, key, entries, "a list of {role, content}")
    return tuple(_message(row, f"{key}[{i}]", entry) for i, entry in enumerate(entries))


def _message(row: Row, name: str, entry: object) -> Message:
    if not isinstance(entry, dict):
        raise mismatch(row, name, entry, "an object {role, content}")
    role, content = entry.get("role"), entry.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str):
        raise mismatch(row, f"{name}.role", role, "text")
    if entry.get("tool_calls"):
        raise UserError(f"{row.where}: {name} has tool_calls, which are not supported")
    return Message(role, checked_text(row, f"{name}.content", content))


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and type(part.get("text")) is str


def _parse_instruction(row: Row) -> Conversation:
    user = text_at(row, "instruction")
    if row.record.get("input"):
        user = f"{user}\n{text_at(row, 'input')}"
    return Conversation(
        row.where, (Message("user", user), Message("assistant", text_at(row, "output"))), None
    )


def _parse_chosen(row: Row) -> Conversation:
    return hh_conversation(row, text_at(row, "chosen"))


def _parse_text(row: Row) -> Conversation:
    return hh_conversation(row, text_at(row, "text"))


def hh_conversation(row: Row, text: str) -> Conversation:
    """A text with `Human:` and `Assistant:` turns; what stands before them is a system message."""
    markers = list(_MARKER.finditer(text))
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    head = text[: markers[0].start()] if markers else text
    messages = [Message("system", head)] if head.strip() else []
    spans = []
    for marker, end in zip(markers, ends, strict=False):  # without markers there is still one end
        role = "assistant" if marker[1] == "Assistant" else "user"
        messages.append(Message(role, text[marker.end() : end].strip()))
        if role == "assistant":
            spans.append((marker.end(), end))
    return Conversation(row.where, tuple(messages), own_text(text, spans))


def text_at(row: Row, key: str) -> str:
    """The text under a key."""
    if key not in row.record:
        found = ", ".join(sorted(row.record)) or "none"
        raise UserError(
            f"{row.where}: no key {key!r} in this row (its keys: {found})",
            "every row must have the schema of the first row",
        )
    return checked_text(row, key, row.record[key])


def checked_text(row: Row, name: str, value: object) -> str:
    """A value, when it is text that can be encoded; `name` is what the message calls it."""
    if not isinstance(value, str):
        raise mismatch(row, name, value, "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.where}: {name} holds half a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}) at character {error.start + 1}",
            "the text was cut inside an escaped character; mend or remove the row",
        ) from error
    return value


def mismatch(row: Row, name: str, value: object, expected: str) -> UserError:
    """The error for a value of another kind than expected."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return UserError(
        f"{row.where}: {name} is {kinds.get(type(value), 'a number')}, where {expected} is expected"
    )


_SCHEMAS: Schemas[Conversation] = (
    (("messages",), _parse_messages),
    (("instruction", "output"), _parse_instruction),
    (("query", "response"), _parse_query),
    (("prompt", "response"), _parse_prompt),
    (("chosen",), _parse_chosen),
    (("text",), _parse_text),
)
