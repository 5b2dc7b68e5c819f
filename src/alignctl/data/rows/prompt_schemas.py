r"""The row schemas of prompts, and the one question type that all of them become.

- chat `{messages: [{role, content}, ...]}`: what comes before the assistant's next turn; an
  assistant turn at the end, as rows of fine-tuning have it, is left out.
- GSM8K `{question, answer}`: a chat of one user turn, checked by `math_rule`.
- prompt `{prompt}`: a text, which stays as it is, or a chat.
- query `{query}`: written as in fine-tuning, up to its `\n\nAssistant:`.

A row that is not GSM8K's may have `answer`, the reference, and `eval_func`, the name of the rule
that compares with it. Where an answer is a worked solution that ends in `#### N`, as GSM8K's do,
the reference is N. `system`, `history` and `tools` are read where fine-tuning reads them. The first
row decides which schema is read, and every row must be of it. Further keys, such as an answer to
imitate, are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import CONTEXT_KEYS, Message, chat_at, context_at, tools_at
from alignctl.data.rows.schemas import (
    Conversation,
    Rendered,
    Schema,
    first_fitting,
    own_text,
    query_turn,
    single_turn,
)
from alignctl.data.rows.values import check_text, mismatch, text_at
from alignctl.errors import UserError

GSM8K_RULE = "math_rule"
"""The rule of rows that name none because their schema has only one."""

# Stands where the policy's answer comes: templates write assistant turns only with a content.
_ANSWER = "alignctl-answer"
_FINAL = "####"


@dataclass(frozen=True)
class Question:
    """A row of prompts, whatever its schema was.

    Attributes:
        conversation: The prompt, followed by an assistant turn that stands for the answer to come;
            so the templates of fine-tuning write it, and the policy reads what it learned to read.
        answer: The reference answer, or None.
        eval_func: Name of the rule that compares with it, or None.
    """

    conversation: Conversation
    answer: str | None
    eval_func: str | None

    @property
    def characters(self) -> int:
        """Characters of the prompt."""
        return self.conversation.characters

    @property
    def asked(self) -> str:
        """Text of the last turn before the answer, as the row has it."""
        return self.conversation.messages[-2].content

    def answered(self, answer: str) -> Conversation:
        """Return the conversation with an answer in its place, as a row of fine-tuning has it."""
        own = self.conversation.own
        if own is not None:
            text = own.text.removesuffix(_ANSWER) + answer
            own = own_text(text, [*own.spans[:-1], (own.spans[-1][0], len(text))])
        messages = (*self.conversation.messages[:-1], Message("assistant", answer))
        return replace(self.conversation, messages=messages, own=own)


def lead(prompt: Rendered) -> str:
    """Return the white space that is written before the answer to come, and belongs to it."""
    before = prompt.text[prompt.spans[-1][0] :].partition(_ANSWER)[0]
    return "" if before.strip() else before


def prompt_schema_of(row: Row) -> Schema[Question]:
    """Return the schema that this (first) row has."""
    return first_fitting(row, _SCHEMAS)


def chat(messages: Sequence[Message], where: str) -> Question:
    """Make a question of a chat: what comes before the assistant's next turn.

    Args:
        messages: The turns so far; the last one is not the assistant's.
        where: What messages call it.
    """
    return Question(
        Conversation(where, (*messages, Message("assistant", _ANSWER)), None), None, None
    )


def _parse_messages(row: Row) -> Question:
    return _question(row, _chat(row, "messages"))


def _parse_gsm8k(row: Row) -> Question:
    asked = Message("user", _said(row, "question"))
    messages = (*context_at(row), asked, Message("assistant", _ANSWER))
    solution = text_at(row, "answer")
    if _FINAL not in solution:
        raise UserError(
            f"{row.where}: answer does not end in '{_FINAL} N', as GSM8K's solutions do",
            "for other answers use the keys prompt, answer and eval_func",
        )
    conversation = Conversation(row.where, messages, None, tools_at(row))
    return Question(conversation, _reference(row, solution), GSM8K_RULE)


def _parse_prompt(row: Row) -> Question:
    if isinstance(row.record.get("prompt"), list):
        return _question(row, _chat(row, "prompt"))
    prompt = _said(row, "prompt")
    return _question(row, single_turn(row, prompt, _ANSWER, prompt))


def _parse_query(row: Row) -> Question:
    query = _said(row, "query")
    return _question(row, query_turn(row, query, _ANSWER))


def _said(row: Row, key: str) -> str:
    text = text_at(row, key)
    if not text.strip():
        raise UserError(f"{row.where}: {key} is empty, so nothing is asked", "remove the row")
    return text


def _chat(row: Row, key: str) -> Conversation:
    messages = list(chat_at(row, key))
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not any(message.content.strip() for message in messages):
        raise UserError(f"{row.where}: {key} is empty, so nothing is asked", "remove the row")
    asked = (*messages, Message("assistant", _ANSWER))
    return Conversation(row.where, asked, None, tools_at(row))


def _question(row: Row, conversation: Conversation) -> Question:
    eval_func = row.record.get("eval_func")
    name = None if eval_func is None else check_text(row, "eval_func", eval_func)
    answer = row.record.get("answer")
    if answer is None:
        if name is not None:
            raise UserError(
                f"{row.where}: eval_func is {name!r}, but there is no answer to compare with",
                "add the key answer, or remove eval_func",
            )
        return Question(conversation, None, None)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        raise mismatch(row, "answer", answer, "text or a number")
    return Question(conversation, _reference(row, check_text(row, "answer", answer)), name)


def _reference(row: Row, answer: str) -> str:
    reference = answer.rpartition(_FINAL)[2].strip()
    if not reference:
        raise UserError(
            f"{row.where}: answer is empty{f' after {_FINAL}' if answer.strip() else ''}",
            "write the reference answer there, or remove the row",
        )
    return reference


_OPTIONAL = ("answer", "eval_func", *CONTEXT_KEYS)
_SCHEMAS: tuple[Schema[Question], ...] = (
    Schema(("messages",), _parse_messages, _OPTIONAL),
    Schema(("question", "answer"), _parse_gsm8k, CONTEXT_KEYS),
    Schema(("prompt",), _parse_prompt, _OPTIONAL),
    Schema(("query",), _parse_query, _OPTIONAL),
)
