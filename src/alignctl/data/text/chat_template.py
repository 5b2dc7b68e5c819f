"""One conversation and the chat template that writes it: its text, and the turns found in it.

A template is a program of whoever made the model. It runs in a process of its own, where this
module is used (see `template_process`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alignctl.data.rows.messages import Message
from alignctl.data.rows.schemas import Conversation, Rendered, find_learned_start
from alignctl.errors import UserError

MOST_CHARACTERS = 1 << 26
"""Of what a template writes: as many as a row may have."""

_NOTHING = Rendered("", (), append_eos=False)
_PROBE = "alignctl-content"


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
        source: In Jinja.
        folder: Where its tokenizer was read from, for messages.
        special_tokens: `bos_token`, `eos_token`, ... to their texts.
    """

    source: str
    folder: str
    special_tokens: dict[str, str]

    def documents(self, conversation: Conversation, *, whole: bool = False) -> list[Rendered]:
        """Write a conversation: first what fine-tuning learns beside the whole, then the whole.

        Args:
            conversation: The conversation. A turn that stands otherwise once others follow it is
                learned in a document that ends with it.
            whole: Leaves those documents out.

        Raises:
            UserError: The template refuses it, or writes what nobody can find turns in.
        """
        text, rewritten = self._write(conversation)
        parts = []
        for index in [] if whole else rewritten:
            start = replace(conversation, messages=conversation.messages[: index + 1])
            parts.append(self._write(start)[0].keep_last_turn())
        return [*parts, text]

    def _write(self, conversation: Conversation) -> tuple[Rendered, list[int]]:
        """Write the text; list the turns that the template writes otherwise when they are last."""
        messages = list(conversation.messages)
        while messages and not _is_learned(messages[-1]):
            messages.pop()
        if not messages:
            return _NOTHING, []
        writing = _Writing(self, conversation)
        return (
            writing.render_marked(messages)
            if writing.is_marked
            else writing.find_by_prefixes(messages)
        )


def _is_learned(message: Message) -> bool:
    says = message.content.strip() or message.extra
    return message.role == "assistant" and message.is_learned and bool(says)


class _Writing:
    """One conversation and the chat template that writes it.

    Attributes:
        is_marked: Whether the template marks what is learned.
    """

    def __init__(self, template: Template, conversation: Conversation) -> None:
        self._template, self._eos = template, template.special_tokens["eos_token"]
        self._where, self._tools = conversation.where, list(conversation.tools) or None
        self.is_marked = re.search(r"\{%-?\s*generation\s*-?%\}", template.source) is not None

    def _write(
        self, messages: Sequence[Message], *, marked: bool = False, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render; also return the character ranges inside `{% generation %}` when `marked`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, ranges = render_jinja_template(
                conversations=[
                    [{"role": m.role, "content": m.content, **m.extra} for m in messages]
                ],
                chat_template=self._template.source,
                tools=self._tools,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt,
                **self._template.special_tokens,
            )
            texts[0].encode("utf-8")  # half a surrogate pair is no text
            if len(texts[0]) > MOST_CHARACTERS:
                raise OverflowError(f"it writes more than {MOST_CHARACTERS:,} characters")
        except Exception as error:  # a template's own code raises whatever it likes
            said = " ".join(str(error).split())[:200] or type(error).__name__
            said = "it takes too much memory" if isinstance(error, MemoryError) else said
            raise UserError(
                f"{self._where}: the chat template of {self._template.folder} refuses this "
                f"conversation: {said}",
                "mend the row, or use data.template=hh",
            ) from error
        return texts[0], ranges[0] if marked else []

    def render_marked(self, messages: Sequence[Message]) -> tuple[Rendered, list[int]]:
        """Render the text with the turns that the template marks."""
        text, ranges = self._write(messages, marked=True)
        eos = self._eos
        turns = [message for message in messages if message.role == "assistant"]
        learned, others = [], []
        for number, (first, last) in enumerate(ranges):
            start = find_learned_start(text, first)
            # Templates that mark more or less than whole turns leave nothing to compare with.
            is_wanted = len(ranges) != len(turns) or turns[number].is_learned
            if text[first:last].removesuffix(eos).strip() and is_wanted:
                end = last + len(eos) if text.startswith(eos, last) else last
                learned.append((start, end))
            else:
                others.append(start)
        return Rendered(text, tuple(learned), append_eos=False, other_starts=tuple(others)), []

    def find_by_prefixes(self, messages: Sequence[Message]) -> tuple[Rendered, list[int]]:
        """Find each assistant turn by what its message adds to the text of those before it."""
        whole, _ = self._write(messages)
        eos = self._eos
        spans, others, rewritten = [], [], []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            is_last = index + 1 == len(messages)
            through = whole if is_last else self._write(messages[: index + 1])[0]
            start = self._turn_start(messages[:index], through)
            if start is None and is_last:
                raise UserError(
                    f"{self._where}: the chat template of {self._template.folder} rewrites earlier"
                    f" turns when messages[{index}] follows, so its tokens cannot be told apart",
                    "use a chat template with {% generation %} marks, or data.template=hh",
                )
            if start is None or not whole.startswith(through):
                rewritten += [index] * _is_learned(message)
            elif not _is_learned(message):
                others.append(find_learned_start(through, start))
            else:
                turn = through[start:].rstrip()
                # White space after EOS is never generated: generation has stopped.
                end = start + len(turn) if turn.endswith(eos) else len(through)
                spans.append((find_learned_start(through, start), end))
        end = spans[-1][1]
        append_eos = not whole[slice(*spans[-1])].endswith(eos)
        return Rendered(whole[:end], tuple(spans), append_eos, tuple(others)), rewritten

    def _turn_start(self, before: Sequence[Message], through: str) -> int | None:
        """Find where the last turn's own text starts in `through`; None without a stable prefix."""
        if before and "add_generation_prompt" in self._template.source:
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
