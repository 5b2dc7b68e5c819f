r"""How a conversation is written as text, and which characters of it are learned.

`data.template` chooses for a run:

- `auto`: a row that has a text of its own (prompt/response, query/response, HH) keeps it; chat and
  instruction rows go through the tokenizer's chat template, or the HH form when there is none.
- `tokenizer`: every row goes through the tokenizer's chat template.
- `hh`: every row is written `\n\nHuman: ...\n\nAssistant: ...`; HH text stays as it is.
- `none`: every row keeps its own text; chat and instruction rows are refused.
- another word: every row goes through the chat template of this name.

Of templates with names, `default` is the tokenizer's; rows with tools take `tool_use` where there
is one, as in transformers.

What is learned after a chat template: what the template marks with `{% generation %}`, with an EOS
that directly follows; otherwise, for each assistant message, what its rendering adds to the
generation prompt before it, up to and with EOS when the turn ends with one. Spaces that end a
header belong to the turn after it (see `learned_start`).
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from alignctl.data.messages import Message
from alignctl.data.schemas import Conversation, Rendered, hh_text, learned_start
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

CHOICES = ("auto", "tokenizer", "hh", "none")

_NOTHING = Rendered("", (), append_eos=False)
_PROBE = "alignctl-content"
# Without these a conversation is about something else.
_NEEDED = ("tools", "messages.tool_calls")


class Renderer:
    """Writes the conversations of a run as text."""

    def __init__(self, choice: str, tokenizer: Tokenizer) -> None:
        """Looks at the tokenizer's chat templates.

        Args:
            choice: `data.template`.
            tokenizer: Whose chat templates there are.

        Raises:
            UserError: There is no such template.
        """
        self._choice, self._tokenizer = choice, tokenizer
        templates = tokenizer.chat_templates
        if choice == "tokenizer" and not templates:
            raise UserError(
                f"data.template is tokenizer, but {tokenizer.folder} has no chat template",
                "use data.template=hh, or put a chat_template.jinja into that folder",
            )
        if choice == "tokenizer":
            self._template(())
        if choice not in CHOICES and choice not in templates:
            known = [*CHOICES, *templates]
            near = difflib.get_close_matches(choice, known, n=1)
            raise UserError(
                f"data.template is {choice!r}, and {tokenizer.folder} has no chat template of this "
                "name",
                f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
            )

    def __call__(self, conversation: Conversation) -> Rendered:
        """Return the whole conversation; turns that are rewritten later are not learned in it."""
        return self._written(conversation)[0]

    def documents(self, conversation: Conversation) -> list[Rendered]:
        """Return what fine-tuning learns of a conversation: one document, or several.

        Some templates write an earlier turn in another way than the last one (Qwen 3 drops its
        thoughts). Such a turn is learned in a document that ends with it, as the model sees it when
        it is asked for it.
        """
        whole, rewritten = self._written(conversation)
        parts = []
        for index in rewritten:
            start = replace(conversation, messages=conversation.messages[: index + 1])
            part, _ = self._written(start)
            parts.append(part.with_last_turn())
        return [*parts, whole]

    def unread(self, conversation: Conversation) -> list[str]:
        """Return the keys beside role and content that are not written: no template names them."""
        keys = {f"messages.{key}": key for m in conversation.messages for key in m.extra}
        keys.pop("messages.content", None)
        if conversation.tools:
            keys["tools"] = "tools"
        if not keys:
            return []
        template = "" if self._keeps_own(conversation) else self._template(conversation.tools)
        return [name for name, key in keys.items() if not _names(template, key)]

    def _keeps_own(self, conversation: Conversation) -> bool:
        """Whether no chat template is asked."""
        if self._choice == "hh" or (self._choice == "auto" and not self._tokenizer.chat_templates):
            return True
        return self._choice in ("auto", "none") and conversation.own is not None

    def _written(self, conversation: Conversation) -> tuple[Rendered, list[int]]:
        """The text, and the places of the turns in it that stand otherwise when they are last."""
        for key in self.unread(conversation):
            if key in _NEEDED:
                raise UserError(
                    f"{conversation.where}: the row has {key}, which nothing writes: neither the "
                    f"HH form nor the chat template of {self._tokenizer.folder}, if it has one",
                    "use a tokenizer with a chat template that writes it, or remove it",
                )
        own = conversation.own
        if self._choice == "none" and own is None:
            raise UserError(
                f"{conversation.where}: data.template is none, but chat and instruction rows have "
                "no text of their own",
                "use data.template=auto",
            )
        if not self._keeps_own(conversation):
            return self._by_template(conversation)
        if own is not None and (self._choice != "hh" or _is_hh(own)):
            return own, []
        return render_hh(conversation), []

    def _template(self, tools: Sequence[object]) -> str:
        """The source of the chat template that writes a conversation with these tools."""
        templates = self._tokenizer.chat_templates
        if self._choice in templates and self._choice not in CHOICES:
            return templates[self._choice]
        if tools and "tool_use" in templates:
            return templates["tool_use"]
        if "default" not in templates:
            raise UserError(
                f"{self._tokenizer.folder}: the chat templates have names "
                f"({', '.join(templates)}), and none is the default",
                f"choose one: data.template={next(iter(templates))}",
            )
        return templates["default"]

    def _by_template(self, conversation: Conversation) -> tuple[Rendered, list[int]]:
        messages = list(conversation.messages)
        while messages and not _is_learned(messages[-1]):
            messages.pop()
        if not messages:
            return _NOTHING, []
        writing = _Writing(self._tokenizer, self._template(conversation.tools), conversation)
        return writing.marked(messages) if writing.is_marked else writing.by_prefixes(messages)


def _is_hh(own: Rendered) -> bool:
    return re.search(r"(\A|\n\n)Assistant:", own.text) is not None


def render_hh(conversation: Conversation) -> Rendered:
    """Write turns in the form of Anthropic's HH data; a system message is the text before them."""
    for index, message in enumerate(conversation.messages):
        is_head = message.role == "system" and index == 0
        if message.role not in ("user", "assistant") and not is_head:
            raise UserError(
                f"{conversation.where}: messages[{index}] has the role {message.role!r}; the "
                "Human/Assistant form has user, assistant and one system message at the start",
                "use a tokenizer with a chat template that knows this role",
            )
    return hh_text(conversation.messages)


def _is_learned(message: Message) -> bool:
    says = message.content.strip() or message.extra
    return message.role == "assistant" and message.is_learned and bool(says)


@cache
def _names(template: str, key: str) -> bool:
    """Whether a template's source has a word."""
    return re.search(rf"\b{re.escape(key)}\b", template) is not None


class _Writing:
    """One conversation and the chat template that writes it.

    Attributes:
        is_marked: Whether the template marks what is learned.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, conversation: Conversation) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._where, self._tools = conversation.where, list(conversation.tools) or None
        self.is_marked = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None

    def _write(
        self, messages: Sequence[Message], *, marked: bool = False, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Renders; also the character ranges inside `{% generation %}` when `marked`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, ranges = render_jinja_template(
                conversations=[
                    [{"role": m.role, "content": m.content, **m.extra} for m in messages]
                ],
                chat_template=self._template,
                tools=self._tools,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt,
                **self._tokenizer.special_tokens,
            )
        except Exception as error:  # a template's own code raises whatever it likes
            raise UserError(
                f"{self._where}: the chat template of {self._tokenizer.folder} refuses this "
                f"conversation: {str(error) or type(error).__name__}",
                "mend the row, or use data.template=hh",
            ) from error
        return texts[0], ranges[0] if marked else []

    def marked(self, messages: Sequence[Message]) -> tuple[Rendered, list[int]]:
        """The text with the turns that the template marks."""
        text, ranges = self._write(messages, marked=True)
        eos = self._tokenizer.eos_token
        turns = [message for message in messages if message.role == "assistant"]
        learned, others = [], []
        for number, (first, last) in enumerate(ranges):
            start = learned_start(text, first)
            # Templates that mark more or less than whole turns leave nothing to compare with.
            is_wanted = len(ranges) != len(turns) or turns[number].is_learned
            if text[first:last].removesuffix(eos).strip() and is_wanted:
                end = last + len(eos) if text.startswith(eos, last) else last
                learned.append((start, end))
            else:
                others.append(start)
        return Rendered(text, tuple(learned), append_eos=False, other_starts=tuple(others)), []

    def by_prefixes(self, messages: Sequence[Message]) -> tuple[Rendered, list[int]]:
        """Finds each assistant turn by what its message adds to the text of those before it."""
        whole, _ = self._write(messages)
        eos = self._tokenizer.eos_token
        spans, others, rewritten = [], [], []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            is_last = index + 1 == len(messages)
            through = whole if is_last else self._write(messages[: index + 1])[0]
            start = self._turn_start(messages[:index], through)
            if start is None and is_last:
                raise UserError(
                    f"{self._where}: the chat template of {self._tokenizer.folder} rewrites earlier"
                    f" turns when messages[{index}] follows, so its tokens cannot be told apart",
                    "use a chat template with {% generation %} marks, or data.template=hh",
                )
            if start is None or not whole.startswith(through):
                rewritten += [index] * _is_learned(message)
            elif not _is_learned(message):
                others.append(learned_start(through, start))
            else:
                turn = through[start:].rstrip()
                # White space after EOS is never generated: generation has stopped.
                end = start + len(turn) if turn.endswith(eos) else len(through)
                spans.append((learned_start(through, start), end))
        end = spans[-1][1]
        append_eos = not whole[slice(*spans[-1])].endswith(eos)
        return Rendered(whole[:end], tuple(spans), append_eos, tuple(others)), rewritten

    def _turn_start(self, before: Sequence[Message], through: str) -> int | None:
        """Where the last turn's own text starts in `through`, or None without a stable prefix."""
        if before and "add_generation_prompt" in self._template:
            prompt, _ = self._write(before, prompt=True)
            if through.startswith(prompt):
                return len(prompt)
        context = self._write(before)[0] if before else ""
        if not through.startswith(context):
            return None
        # The template has no generation prompt (Llama 2's), or one that the turn does not start
        # with (an empty "thinking" block): the turn's header ends where another content would
        # stand. A header of white space is generated, not given, so it is learned.
        probe, _ = self._write([*before, Message("assistant", _PROBE)])
        header = probe[: max(probe.find(_PROBE), len(context))]
        is_header = through.startswith(header) and header[len(context) :].strip()
        return len(header) if is_header else len(context)
