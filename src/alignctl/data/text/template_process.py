"""Chat templates in a process of their own, which ends when one takes too long.

A template comes with a model, and is a program: it may loop for a year, or write a terabyte.
"""

import json
import os
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from alignctl.data.rows.schemas import Conversation, Rendered
from alignctl.data.text.chat_template import Template
from alignctl.data.text.template_worker import LIMIT_SECONDS, MEMORY_BYTES, TIME_OVER
from alignctl.errors import UserError

_PIPE_BYTES = 1 << 20
"""Room for the answers to a batch, so that they are made while others do something else."""


class TemplateProcess:
    """A process that writes conversations, and ends when nobody has this object any more."""

    def __init__(self) -> None:
        """Start the process.

        A fresh interpreter, and no fork: a rank's threads and devices stay its own. A session of
        its own keeps the terminal's signals away.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "alignctl.data.text.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE_BYTES,
            start_new_session=True,
        )
        self._asked: deque[tuple[Template, Conversation]] = deque()
        self._end = weakref.finalize(self, _end, self._process)

    @property
    def is_idle(self) -> bool:
        """True if it can be asked: it is alive, and all its answers were received."""
        return self._end.alive and not self._asked

    def send(self, asked: Sequence[tuple[Template, Conversation]], *, whole: bool) -> None:
        """Send it conversations, each with the template that writes it.

        Args:
            asked: Any number. What was asked before must have been received.
            whole: Whether only the last document of each is wanted.
        """
        templates = list({id(template): template for template, _ in asked}.values())
        numbers = {id(template): number for number, template in enumerate(templates)}
        task = {
            "templates": [vars(template) for template in templates],
            "conversations": [(numbers[id(each)], _fields(said)) for each, said in asked],
            "whole": whole,
        }
        # Parquet files have values that JSON has not, such as dates.
        line = json.dumps(task, ensure_ascii=False, default=str) + "\n"
        self._asked.extend(asked)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # that it has died is seen when the answers are read
            self._process.stdin.write(line.encode("utf-8", "surrogatepass"))
            self._process.stdin.flush()

    def receive(self) -> list[list[Rendered]]:
        """Wait for the documents of the conversations that were sent, and return them.

        Raises:
            UserError: A template refuses its conversation, takes too long, or too much memory.
        """
        documents: list[list[Rendered]] = []
        assert self._process.stdout is not None
        while self._asked:
            template, conversation = self._asked.popleft()
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._died(template, conversation)
            answer = json.loads(line.decode("utf-8", "surrogatepass"))
            if "refused" in answer:
                raise UserError(*answer["refused"])
            documents.append([_render(*fields) for fields in answer["documents"]])
        return documents

    def _died(self, template: Template, conversation: Conversation) -> UserError:
        code = self._process.wait()
        self._end()
        what = (
            f"takes more than {LIMIT_SECONDS:g} s of processor time"
            if code == -TIME_OVER
            else f"ends its process (exit code {code}), perhaps for lack of memory: it may use "
            f"{MEMORY_BYTES >> 30} GiB"
        )
        return UserError(
            f"{conversation.where}: the chat template of {template.folder} {what} for this "
            "conversation",
            "mend the template or the row, or use data.template=hh",
        )


_shared: dict[int, TemplateProcess] = {}


def template_process() -> TemplateProcess:
    """Return the process that writes conversations for this one; start it if it is needed.

    What was asked of it before must have been received, or is given up.
    """
    me = os.getpid()
    if me not in _shared or not _shared[me].is_idle:
        _shared[me] = TemplateProcess()
    return _shared[me]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):  # what a dead process did not read is of no use
                stream.close()


def _fields(conversation: Conversation) -> list[object]:
    messages = [(m.role, m.content, m.is_learned, m.extra) for m in conversation.messages]
    return [conversation.where, messages, conversation.tools]


def _render(
    text: str, spans: list[list[int]], append_eos: bool, other_starts: list[int]
) -> Rendered:
    return Rendered(text, tuple((a, b) for a, b in spans), append_eos, tuple(other_starts))
