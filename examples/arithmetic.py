"""Additions of two-digit numbers, as questions with worked answers: the data of the demo.

The answer goes digit by digit ("7+5=12, 1+2+1=4, so 42."), because a model of two layers learns
the steps in a minute, and the sum alone not in ten. Questions of the held-out files ask for sums
that no training row holds.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.data.rows.schemas import ASSISTANT, HUMAN

NUMBERS = range(100)
FORMS = (
    "What is {a}+{b}?",
    "How much is {a}+{b}?",
    "Please add: {a}+{b}",
)
MAX_TURNS = 2
"""Questions in the longest chat."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\nAnswer: ' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% endif %}{% endfor %}"
)
"""A question ends with the cue to answer, so there is no generation prompt to add."""


@dataclass(frozen=True)
class Addition:
    """One sum to ask for."""

    a: int
    b: int

    def question(self, form: str = FORMS[0]) -> str:
        """Ask for the sum as a question."""
        return form.format(a=self.a, b=self.b)

    @property
    def answer(self) -> str:
        """Sum, worked out: units, tens with the carry, result."""
        return self._worked(carries=self._has_carry)

    @property
    def wrong_answer(self) -> str:
        """Sum with the usual mistake: the carry is forgotten, or one is added for nothing."""
        return self._worked(carries=not self._has_carry)

    @property
    def _has_carry(self) -> bool:
        return self.a % 10 + self.b % 10 > 9

    def _worked(self, *, carries: bool) -> str:
        (a_tens, a_units), (b_tens, b_units) = divmod(self.a, 10), divmod(self.b, 10)
        units, tens = a_units + b_units, a_tens + b_tens + carries
        carried = "+1" if carries else ""
        worked = f"{a_units}+{b_units}={units}, {a_tens}+{b_tens}{carried}={tens}"
        return f"{worked}, so {10 * tens + units % 10}."

    def is_answered_by(self, text: str) -> bool:
        """Tell whether a reply ends with the right number."""
        numbers = re.findall(r"\d+", text)
        return bool(numbers) and int(numbers[-1]) == self.a + self.b


def split(*, held_out: int, seed: int) -> tuple[list[Addition], list[Addition]]:
    """Shuffle all sums and cut them in two.

    Args:
        held_out: Sums that are never trained on.
        seed: Of the order.

    Returns:
        Sums to train on, and those held out.
    """
    sums = [Addition(a, b) for a in NUMBERS for b in NUMBERS]
    random.Random(seed).shuffle(sums)
    return sums[held_out:], sums[:held_out]


def questions(
    sums: Iterable[Addition], *, seed: int, wrong_share: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yield rows of the query/response schema, one sum each, a share of them with wrong answers.

    A policy that has learned from such rows makes the usual mistake as often as they do, and can be
    taught which of its own answers are the better ones.
    """
    randomness = random.Random(seed)
    for each in sums:
        question = each.question(randomness.choice(FORMS))
        is_wrong = randomness.random() < wrong_share
        yield {"query": question, "response": each.wrong_answer if is_wrong else each.answer}


def chats(sums: Sequence[Addition], *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows of the chat schema: one to `MAX_TURNS` questions with their answers."""
    randomness = random.Random(seed)
    start = 0
    while start < len(sums):
        turns = sums[start : start + randomness.randint(1, MAX_TURNS)]
        start += len(turns)
        messages = []
        for each in turns:
            question = each.question(randomness.choice(FORMS))
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": each.answer})
        yield {"messages": messages}


def small(sums: Iterable[Addition]) -> list[Addition]:
    """Select sums of small numbers, which have fewer facts in them: a policy learns them sooner."""
    return [each for each in sums if (each.a < 20 and each.b < 20) or (each.a < 50 and each.b < 10)]


def asked(sums: Iterable[Addition], *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows of prompts with the right sum, for a policy that answers them itself."""
    random_form = random.Random(seed)
    for each in sums:
        question = each.question(random_form.choice(FORMS))
        yield {"query": question, "answer": str(each.a + each.b), "eval_func": "math_rule"}


def question_pairs(sums: Iterable[Addition], *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield preferences of the query/response schema: right and wrong answers, in any order."""
    randomness = random.Random(seed)
    for each in sums:
        question = each.question(randomness.choice(FORMS))
        answers = [(each.answer, 1.0), (each.wrong_answer, 0.0)]
        randomness.shuffle(answers)
        responses, scores = zip(*answers, strict=True)
        yield {"query": question, "response": responses, "score": scores}


def chat_pairs(sums: Iterable[Addition], *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield preferences of the chat schema: conversations that end right, and that end wrong."""
    randomness = random.Random(seed)
    for each in sums:
        question = {"role": "user", "content": each.question(randomness.choice(FORMS))}
        ends = {"chosen": each.answer, "rejected": each.wrong_answer}
        yield {
            name: [question, {"role": "assistant", "content": end}] for name, end in ends.items()
        }


def wordings(sums: Iterable[Addition]) -> Iterator[str]:
    """Yield sums as a model sees them, in every form: texts to train a tokenizer on."""
    for each in sums:
        for form in FORMS:
            question = each.question(form)
            yield f"{HUMAN}{question}{ASSISTANT}{each.answer}"
            yield f"Question: {question}\nAnswer: {each.answer}\n"


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
