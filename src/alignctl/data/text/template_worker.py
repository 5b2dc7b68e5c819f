"""The process that writes conversations by chat templates for `TemplateProcess`.

A line of JSON comes in, with templates and conversations; a line of JSON goes out for each
conversation. While a template runs, the kernel counts the processor time and ends the process by
`TIME_OVER` at the limit, whatever it is doing: a long computation in one operation, such as a
power of powers, checks for nothing else. It imports no torch, and ends when the other end of its
pipe closes.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from alignctl.data.rows.messages import Message
from alignctl.data.rows.schemas import Conversation
from alignctl.data.text.chat_template import Template
from alignctl.errors import UserError

LIMIT_SECONDS = 5.0
"""Processor time for one conversation. One of a thousand turns takes 0.2 s."""

MEMORY_BYTES = 1 << 30
"""Address space beyond what the libraries need."""

TIME_OVER = signal.SIGPROF
"""The signal that the process dies of when a conversation has used up its time."""


def main() -> None:
    """Answer tasks until there are no more."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(TIME_OVER, signal.SIG_DFL)
    import transformers.utils.chat_template_utils  # noqa: F401  (before memory is limited)

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin.buffer:
        task = json.loads(line.decode("utf-8", "surrogatepass"))
        templates = [Template(**each) for each in task["templates"]]
        for number, conversation in task["conversations"]:
            signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
            answer = _answer(templates[number], conversation, task["whole"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
        answers.flush()


def _answer(template: Template, fields: list[Any], whole: bool) -> dict[str, Any]:
    where, messages, tools = fields
    conversation = Conversation(where, tuple(Message(*each) for each in messages), None, tools)
    try:
        documents = template.documents(conversation, whole=whole)
    except UserError as error:
        return {"refused": [error.message, error.hint]}
    return {"documents": [list(vars(each).values()) for each in documents]}


if __name__ == "__main__":
    main()
