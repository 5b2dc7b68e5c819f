"""The turns of a chat as rows have them: messages, a system message, earlier turns, tools."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignctl.data.rows.files import Row
from alignctl.data.rows.values import check_text, mismatch
from alignctl.errors import UserError

CONTEXT_KEYS = ("system", "history", "tools")
"""Keys beside a conversation that change what the model sees."""

# What fine-tuning data of OpenAI, Together, axolotl and ms-swift says of turns that are context.
_LEARNED_KEYS = ("weight", "train", "training", "trainable", "loss", "loss_mask")


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks: `system`, `user`, `assistant`, ...
        content: What they say.
        is_learned: False where the row says that an assistant's turn is context only.
        extra: Further keys, such as `reasoning_content`, for chat templates that write them.
    """

    role: str
    content: str
    is_learned: bool = True
    extra: Mapping[str, object] = field(default_factory=dict)


def context_at(row: Row) -> tuple[Message, ...]:
    """Read the row's system message and earlier turns, from the keys `system` and `history`."""
    messages = system_at(row)
    pairs = row.record.get("history") or []
    if not isinstance(pairs, list):
        raise mismatch(row, "history", pairs, "a list of [user, assistant]")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise mismatch(row, f"history[{number}]", pair, "[user, assistant]")
        said = [check_text(row, f"history[{number}][{i}]", text) for i, text in enumerate(pair)]
        messages += (Message("user", said[0]), Message("assistant", said[1]))
    return messages


def system_at(row: Row) -> tuple[Message, ...]:
    """Read the row's system message, if it has the key `system`."""
    system = row.record.get("system")
    if system is None or system == "":
        return ()
    return (Message("system", check_text(row, "system", system)),)


def tools_at(row: Row) -> tuple[object, ...]:
    """Read the row's tools: a list, or its JSON text, as parquet and ShareGPT files have it."""
    tools = row.record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise UserError(
                f"{row.where}: tools is text that is not JSON: {error}",
                "write a list of functions",
            ) from error
    if not tools:
        return ()
    if not isinstance(tools, list):
        raise mismatch(row, "tools", tools, "a list of functions")
    return tuple(tools)


def is_nothing(value: object) -> bool:
    """Tell whether a value says nothing: null or empty, as often in columns of parquet files."""
    return value is None or value == "" or value == []


def refuse_context(row: Row, keys: Sequence[str] = CONTEXT_KEYS) -> None:
    """Refuse context keys that change what the model sees, if the row has no place for them."""
    for key in keys:
        if row.record.get(key):
            beside = ", ".join(sorted(row.record.keys() - set(CONTEXT_KEYS)))
            raise UserError(
                f"{row.where}: the row has {key}, and no place for it beside its other keys "
                f"({beside})",
                "write it into the text or into messages, or remove the key",
            )


def chat_at(row: Row, key: str) -> tuple[Message, ...]:
    """Read the messages of a chat under a key, after the row's system message."""
    refuse_context(row, ("history",))
    return after_system(row, key, messages_at(row, key))


def after_system(row: Row, key: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the row's system message before messages, unless they begin with it already."""
    system = system_at(row)
    if not system or messages[:1] == system:
        return messages
    if messages and messages[0].role == "system":
        raise UserError(
            f"{row.where}: system is not the system message that {key} begins with",
            "keep one of them",
        )
    return system + messages


def messages_at(row: Row, key: str) -> tuple[Message, ...]:
    """Read the messages of a list under a key."""
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
    if len(entry) == 2 and isinstance(content, str):
        return Message(role, check_text(row, f"{name}.content", content))
    extra = {
        key: value
        for key, value in entry.items()
        if key not in ("role", "content", *_LEARNED_KEYS) and not is_nothing(value)
    }
    if content is None and extra.get("tool_calls"):
        # A turn that only calls functions has no text: templates test whether its content is none.
        extra["content"], content = None, ""
    text = check_text(row, f"{name}.content", content)
    return Message(role, text, is_learned_at(row, name, entry), extra)


def is_learned_at(row: Row, name: str, entry: Mapping[str, object]) -> bool:
    """Tell whether the keys of a turn say that it is learned; `name` is for messages."""
    given = {key: entry[key] for key in _LEARNED_KEYS if entry.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):
            raise UserError(
                f"{row.where}: {name}.{key} is {value!r}: a turn is learned (1) or not (0)",
                "write 0 or 1, or leave the key out",
            )
    return all(given.values())


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and type(part.get("text")) is str
