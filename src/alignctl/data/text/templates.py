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
header belong to the turn after it (see `find_learned_start`).
"""

import difflib
import re
from collections.abc import Callable, Sequence
from functools import cache

from alignctl.data.rows.schemas import Conversation, Rendered, hh_text
from alignctl.data.text.chat_template import Template
from alignctl.data.text.template_process import template_process
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

CHOICES = ("auto", "tokenizer", "hh", "none")

# Keys without which the conversation would lose its meaning.
_NEEDED = ("tools", "messages.tool_calls")


class Renderer:
    """Writes the conversations of a run as text."""

    def __init__(self, choice: str, tokenizer: Tokenizer) -> None:
        """Check that the tokenizer has the chat template that is chosen.

        Args:
            choice: `data.template`.
            tokenizer: Whose chat templates there are.

        Raises:
            UserError: There is no such template.
        """
        self._choice, self._tokenizer = choice, tokenizer
        templates = tokenizer.chat_templates
        self._templates = {
            name: Template(source, str(tokenizer.folder), tokenizer.special_tokens)
            for name, source in templates.items()
        }
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
        return self.start([conversation], whole=True)()[0][-1]

    def documents(self, conversation: Conversation) -> list[Rendered]:
        """Return what fine-tuning learns of a conversation: one document, or several.

        Some templates write an earlier turn in another way than the last one (Qwen 3 drops its
        thoughts). Such a turn is learned in a document that ends with it, as the model sees it when
        it is asked for it. The last document is the whole conversation.
        """
        return self.start([conversation])()[0]

    def start(
        self, conversations: Sequence[Conversation], *, whole: bool = False
    ) -> Callable[[], list[list[Rendered]]]:
        """Begin to write conversations; another process does what templates do.

        Args:
            conversations: Any number.
            whole: Whether only the last document of each is wanted.

        Returns:
            What waits for the documents of each, as `documents` returns them. It has to be called
            before the next start, and also raises.

        Raises:
            UserError: A conversation cannot be written.
        """
        own = [self._own(conversation) for conversation in conversations]
        asked = [
            (self._template(conversation.tools), conversation)
            for conversation, text in zip(conversations, own, strict=True)
            if text is None
        ]
        if not asked:
            return lambda: [[text] for text in own if text is not None]
        process = template_process()
        process.send(asked, whole=whole)

        def wait() -> list[list[Rendered]]:
            written = iter(process.receive())
            return [next(written) if text is None else [text] for text in own]

        return wait

    def unread(self, conversation: Conversation) -> list[str]:
        """Return the keys beside role and content that are not written: no template names them."""
        keys = {f"messages.{key}": key for m in conversation.messages for key in m.extra}
        keys.pop("messages.content", None)
        if conversation.tools:
            keys["tools"] = "tools"
        if not keys:
            return []
        template = (
            "" if self._keeps_own(conversation) else self._template(conversation.tools).source
        )
        return [name for name, key in keys.items() if not _names(template, key)]

    def _keeps_own(self, conversation: Conversation) -> bool:
        """Tell whether a conversation is written without a chat template."""
        if self._choice == "hh" or (self._choice == "auto" and not self._tokenizer.chat_templates):
            return True
        return self._choice in ("auto", "none") and conversation.own is not None

    def _own(self, conversation: Conversation) -> Rendered | None:
        """Write a conversation without a chat template; None where one has to write it."""
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
            return None
        if own is not None and (self._choice != "hh" or _is_hh(own)):
            return own
        return render_hh(conversation)

    def _template(self, tools: Sequence[object]) -> Template:
        """Choose the chat template that writes a conversation with these tools."""
        templates = self._templates
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


@cache
def _names(template: str, key: str) -> bool:
    """Tell whether a template's source has a word."""
    return re.search(rf"\b{re.escape(key)}\b", template) is not None
