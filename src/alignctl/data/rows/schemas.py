r"""The row schemas that are understood, and the one conversation type that all of them become.

- prompt/response `{prompt, response}`: its own text is prompt + response.
- query/response `{query, response}`: its own text is `\n\nHuman: {query}\n\nAssistant:`, a space
  and the response; a query that ends with `\n\nAssistant:` is taken as it is.
- HH text `{chosen}` or `{text}`, with `\n\nHuman:` and `\n\nAssistant:` turns: its own text is
  what stands there.
- chat `{messages: [{role, content}, ...]}`: no text of its own, a template writes it.
- instruction `{instruction, input (optional), output}` (Alpaca): a chat of one question, which is
  the instruction and, on the next line, the input.

Beside a chat, an instruction or a query, `system` is a first message, `tools` are for the template,
and beside the last two `history` holds earlier turns, `[[user, assistant], ...]`. A prompt or an HH
text is whole: they are refused beside it. A message may have `"weight": 0` (or `train`, `loss`,
`loss_mask`, `trainable`, `training`): it is read, not learned. Its other keys are for templates
that write them. The first row decides, and every row must be of its schema; further keys are
counted.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import (
    CONTEXT_KEYS,
    Message,
    chat_at,
    context_at,
    is_nothing,
    refuse_context,
    tools_at,
)
from alignctl.data.rows.values import text_at
from alignctl.errors import UserError

HUMAN = "\n\nHuman: "
ASSISTANT = "\n\nAssistant: "

# What follows the colon belongs to the turn; some HH-like sets have no blank line before the very
# first one.
_MARKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
ASSISTANT_MARKER = re.compile(r"(?:\A|\n\n)Assistant:")
_SPACES = " \t\u00a0\u2009\u3000"


@dataclass(frozen=True)
class Rendered:
    """A document as text.

    Attributes:
        text: The whole document, without BOS unless a chat template wrote it.
        spans: Character ranges `[start, end)` that the model learns: the assistant's turns. What is
            before a range is the prompt that the model sees when it is asked for this turn.
        append_eos: Whether the document still needs its EOS; True when no template wrote one.
        other_starts: Where further turns of the assistant start, which are not learned.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    append_eos: bool
    other_starts: tuple[int, ...] = ()

    @property
    def prompt_ends(self) -> list[int]:
        """Places where the assistant's turns start, in their order."""
        starts = [start for start, _ in self.spans]
        return sorted({*self.other_starts, *starts}) if self.other_starts else starts

    def keep_last_turn(self) -> "Rendered":
        """Return the same text, of which only the last turn is learned."""
        return replace(self, spans=self.spans[-1:], other_starts=tuple(self.prompt_ends))

    def before_last_turn(self) -> "Rendered":
        """Return the text that the model sees when it is asked for the last turn."""
        end = self.spans[-1][0]
        starts = tuple(start for start in self.prompt_ends if start < end)
        return Rendered(self.text[:end], (), append_eos=False, other_starts=starts)


@dataclass(frozen=True)
class Conversation:
    """A row, whatever its schema was.

    Attributes:
        where: `file:line` for messages.
        messages: The turns, for a template to write.
        own: The row's text where its schema fixes the text; None for chat and instruction rows.
        tools: The functions that the model may call, for templates that write them.
    """

    where: str
    messages: tuple[Message, ...]
    own: Rendered | None
    tools: tuple[object, ...] = ()

    @property
    def characters(self) -> int:
        """Characters of all turns."""
        return sum(len(message.content) for message in self.messages)


def own_text(
    text: str, spans: Sequence[tuple[int, int]], other_starts: Sequence[int] = ()
) -> Rendered:
    """Make a document of text that no template wrote, up to the last assistant turn with text.

    A blank turn teaches only to say nothing; what follows the last learned turn teaches nothing.
    EOS comes once, at the end of the document: the prompts of HH-style generation hold no EOS
    between turns, and the model should see in training what it sees there.
    """
    learned = tuple((start, end) for start, end in spans if text[start:end].strip())
    end = learned[-1][1] if learned else 0
    if other_starts or len(learned) < len(spans):
        starts = {*other_starts, *(start for start, _ in spans)}
        other_starts = sorted(start for start in starts if start < end)
    return Rendered(text[:end], learned, append_eos=True, other_starts=tuple(other_starts))


def find_learned_start(text: str, header_end: int) -> int:
    """Find where the turn after a header starts: before the header's last spaces.

    Tokenizers join a space to the word after it. A prompt that ended with the space would end with
    a token that training never saw there, and the model would go on as after a first word. A line
    break stays in the header: tokenizers part it from words, and servers end prompts with it.
    """
    while header_end and text[header_end - 1] in _SPACES:
        header_end -= 1
    return header_end


ParsedT = TypeVar("ParsedT")
ParsedCo = TypeVar("ParsedCo", covariant=True)


@dataclass(frozen=True)
class Schema(Generic[ParsedCo]):
    """One kind of row.

    Attributes:
        keys: What a row of this kind has.
        parse: Turns a row into what it says.
        optional: Further keys that are read; all others are not.
    """

    keys: tuple[str, ...]
    parse: Callable[[Row], ParsedCo]
    optional: tuple[str, ...] = ()

    def unread(self, row: Row) -> list[str]:
        """Return the keys of a row that nothing reads."""
        return [
            key
            for key, value in row.record.items()
            if key not in self.keys and key not in self.optional and not is_nothing(value)
        ]


def schema_of(row: Row) -> Schema[Conversation]:
    """Return the schema that this (first) row has."""
    return first_fitting(row, _SCHEMAS)


def first_fitting(row: Row, schemas: Sequence[Schema[ParsedT]]) -> Schema[ParsedT]:
    """Return the first schema whose keys a row has."""
    for schema in schemas:
        if all(key in row.record for key in schema.keys):
            return schema
    found = ", ".join(sorted(row.record)) or "none"
    hint = "a row has one of: " + "; ".join(" + ".join(schema.keys) for schema in schemas)
    if "conversations" in row.record:
        hint = f"alignctl prepare sharegpt makes such rows into messages; {hint}"
    raise UserError(
        f"{row.where}: the keys of this row ({found}) are not of a schema that is known", hint
    )


def _parse_prompt(row: Row) -> Conversation:
    prompt, response = text_at(row, "prompt"), text_at(row, "response")
    return single_turn(row, prompt, response, prompt)


def _parse_query(row: Row) -> Conversation:
    return query_turn(row, text_at(row, "query"), text_at(row, "response"))


def query_turn(row: Row, query: str, response: str) -> Conversation:
    """Put a query and its answer into HH's form, after the row's system message and history."""
    if query.rstrip(_SPACES).endswith(ASSISTANT.rstrip()):
        return single_turn(row, query, response, query)
    messages = (
        *context_at(row),
        Message("user", query),
        Message("assistant", response),
    )
    return Conversation(row.where, messages, hh_text(messages), tools_at(row))


def single_turn(row: Row, user: str, response: str, prompt: str) -> Conversation:
    """Make a conversation of a question and its answer; its text is the prompt and the answer.

    If the prompt ends with the marker of an assistant's turn, spaces after it belong to the turn.
    """
    refuse_context(row)
    text = prompt + response
    starts = [marker.end() for marker in ASSISTANT_MARKER.finditer(prompt)]
    is_marked = bool(starts) and not prompt[starts[-1] :].strip(_SPACES)
    start = starts.pop() if is_marked else len(prompt)
    return Conversation(
        row.where,
        (Message("user", user), Message("assistant", response)),
        own_text(text, [(start, len(text))], starts),
    )


def hh_text(messages: Sequence[Message]) -> Rendered:
    """Write turns in the form of Anthropic's HH data; a system message is the text before them."""
    text = ""
    spans, others = [], []
    for message in messages:
        if message.role == "system":
            text += message.content
        elif message.role == "user":
            text += HUMAN + message.content
        else:
            start = len(text) + len(ASSISTANT.rstrip())
            text += ASSISTANT + message.content
            if message.is_learned:
                spans.append((start, len(text)))
            else:
                others.append(start)
    return own_text(text, spans, others)


def _parse_messages(row: Row) -> Conversation:
    return Conversation(row.where, chat_at(row, "messages"), None, tools_at(row))


def _parse_instruction(row: Row) -> Conversation:
    user = text_at(row, "instruction")
    if row.record.get("input"):
        user = f"{user}\n{text_at(row, 'input')}"
    messages = (
        *context_at(row),
        Message("user", user),
        Message("assistant", text_at(row, "output")),
    )
    return Conversation(row.where, messages, None, tools_at(row))


def _parse_chosen(row: Row) -> Conversation:
    return hh_conversation(row, text_at(row, "chosen"))


def _parse_text(row: Row) -> Conversation:
    return hh_conversation(row, text_at(row, "text"))


def hh_conversation(row: Row, text: str) -> Conversation:
    """Parse a text with `Human:` and `Assistant:` turns; text before them is a system message."""
    refuse_context(row)
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


_SCHEMAS: tuple[Schema[Conversation], ...] = (
    Schema(("messages",), _parse_messages, CONTEXT_KEYS),
    Schema(("instruction", "output"), _parse_instruction, ("input", *CONTEXT_KEYS)),
    Schema(("query", "response"), _parse_query, CONTEXT_KEYS),
    Schema(("prompt", "response"), _parse_prompt, CONTEXT_KEYS),
    Schema(("chosen",), _parse_chosen, CONTEXT_KEYS),
    Schema(("text",), _parse_text, CONTEXT_KEYS),
)
