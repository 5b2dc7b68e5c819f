r"""How a conversation is written as text, and which characters of it are learned.

`data.template` chooses for a run:

- `auto`: a row that has a text of its own (prompt/response, query/response, HH) keeps it; chat and
  instruction rows go through the tokenizer's chat template, or the HH form when there is none.
- `tokenizer`: every row goes through the tokenizer's chat template.
- `hh`: every row is written `\n\nHuman: ...\n\nAssistant: ...`; HH text stays as it is.
- `none`: every row keeps its own text; chat and instruction rows are refused.

What is learned after a chat template: what the template marks with `{% generation %}`, with an EOS
that directly follows; otherwise, for each assistant message, what its rendering adds to the
generation prompt before it, up to and with EOS when the turn ends with one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from alignctl.data.schemas import (
    ASSISTANT,
    HUMAN,
    Conversation,
    Message,
    Rendered,
    own_text,
)
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

Choice = Literal["auto", "tokenizer", "hh", "none"]
Renderer = Callable[[Conversation], Rendered]

_NOTHING = Rendered("", (), append_eos=False)
_PROBE = "alignctl-content"


def renderer(choice: Choice, tokenizer: Tokenizer) -> Renderer:
    """The function that writes the conversations of a run."""
    if choice == "tokenizer" and tokenizer.chat_template is None:
        raise UserError(
            f"data.template is tokenizer, but {tokenizer.folder} has no chat template",
            "use data.template=hh, or put a chat_template.jinja into that folder",
        )
    chat = _chat_renderer(tokenizer) if tokenizer.chat_template is not None else render_hh
    if choice == "tokenizer":
        return chat
    if choice == "hh":
        return _render_as_hh
    if choice == "none":
        return _keep_own
    return lambda conversation: conversation.own or chat(conversation)


def _keep_own(conversation: Conversation) -> Rendered:
    if conversation.own is None:
        raise UserError(
            f"{conversation.where}: data.template is none, but chat and instruction rows have no "
            "text of their own",
            "use data.template=auto",
        )
    return conversation.own


def _render_as_hh(conversation: Conversation) -> Rendered:
    own = conversation.own
    is_hh = own is not None and re.search(r"(\A|\n\n)Assistant:", own.text) is not None
    return own if own is not None and is_hh else render_hh(conversation)


def render_hh(conversation: Conversation) -> Rendered:
    """Turns in the form of Anthropic's HH data; a system message is the text before them."""
    text = ""
    spans = []
    for index, message in enumerate(conversation.messages):
        if message.role == "system" and index == 0:
            text = message.content
        elif message.role == "user":
            text += HUMAN + message.content
        elif message.role == "assistant":
            text += ASSISTANT
            spans.append((len(text), len(text) + len(message.content)))
            text += message.content
        else:
            raise UserError(
                f"{conversation.where}: messages[{index}] has the role {message.role!r}; the "
                "Human/Assistant form has user, assistant and one system message at the start",
                "use a tokenizer with a chat template that knows this role",
            )
    return own_text(text, spans)


def _chat_renderer(tokenizer: Tokenizer) -> Renderer:
    template = tokenizer.chat_template or ""
    is_marked = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None

    def render(conversation: Conversation) -> Rendered:
        messages = list(conversation.messages)
        while messages and not _is_learned(messages[-1]):
            messages.pop()
        if not messages:
            return _NOTHING
        try:
            write = _render_marked if is_marked else _render_by_prefixes
            return write(tokenizer, messages, conversation.where)
        except _template_errors() as error:
            raise UserError(
                f"{conversation.where}: the chat template of {tokenizer.folder} refuses this "
                f"conversation: {error}",
                "mend the row, or use data.template=hh",
            ) from error

    return render


def _is_learned(message: Message) -> bool:
    return message.role == "assistant" and bool(message.content.strip())


def _template_errors() -> tuple[type[Exception], ...]:
    import jinja2

    # Templates also add None to text or index a string by name: a TypeError from their own code.
    return (jinja2.TemplateError, TypeError)


def _write(
    tokenizer: Tokenizer, messages: Sequence[Message], *, marked: bool = False, prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Renders; also the character ranges inside `{% generation %}` when `marked`."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, ranges = render_jinja_template(
        conversations=[[{"role": m.role, "content": m.content} for m in messages]],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=marked,
        add_generation_prompt=prompt,
        **tokenizer.special_tokens,
    )
    return texts[0], ranges[0] if marked else []


def _render_marked(tokenizer: Tokenizer, messages: list[Message], where: str) -> Rendered:
    del where  # the same signature as _render_by_prefixes
    text, ranges = _write(tokenizer, messages, marked=True)
    eos = tokenizer.eos_token
    spans = [(start, end + len(eos) if text.startswith(eos, end) else end) for start, end in ranges]
    learned = tuple(
        (start, end) for start, end in spans if text[start:end].removesuffix(eos).strip()
    )
    return Rendered(text, learned, append_eos=False)


def _render_by_prefixes(tokenizer: Tokenizer, messages: list[Message], where: str) -> Rendered:
    """Finds each assistant turn by what its message adds to the text of those before it."""
    whole, _ = _write(tokenizer, messages)
    eos = tokenizer.eos_token
    spans = []
    for index, message in enumerate(messages):
        if not _is_learned(message):
            continue
        is_last = index + 1 == len(messages)
        through = whole if is_last else _write(tokenizer, messages[: index + 1])[0]
        start = _turn_start(tokenizer, messages[:index], message, through)
        if start is None or not whole.startswith(through):
            raise UserError(
                f"{where}: the chat template of {tokenizer.folder} rewrites earlier turns when "
                f"messages[{index}] is followed by others, so its tokens cannot be told apart",
                "use a chat template with {% generation %} marks, or data.template=hh",
            )
        turn = through[start:].rstrip()
        # White space after EOS is never generated: generation has stopped.
        spans.append((start, start + len(turn) if turn.endswith(eos) else len(through)))
    last = whole[slice(*spans[-1])]
    return Rendered(whole[: spans[-1][1]], tuple(spans), append_eos=not last.endswith(eos))


def _turn_start(
    tokenizer: Tokenizer, before: list[Message], message: Message, through: str
) -> int | None:
    """Where the assistant's own text starts in `through`, or None when it has no stable prefix."""
    if before and "add_generation_prompt" in (tokenizer.chat_template or ""):
        prompt, _ = _write(tokenizer, before, prompt=True)
        if through.startswith(prompt):
            return len(prompt)
    context = _write(tokenizer, before)[0] if before else ""
    if not through.startswith(context):
        return None
    # The template has no generation prompt (Llama 2's), or one that the turn does not start with
    # (an empty "thinking" block): the turn's header ends where another content would stand. A
    # header of white space is generated, not given, so it is learned.
    probe, _ = _write(tokenizer, [*before, Message("assistant", _PROBE)])
    header = probe[: max(probe.find(_PROBE), len(context))]
    is_header = through.startswith(header) and header[len(context) :].strip()
    return len(header) if is_header else len(context)
