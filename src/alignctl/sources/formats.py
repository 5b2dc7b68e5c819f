r"""What a row of a well-known data set becomes: a row for each stage that can use it, or none.

- hh: Anthropic's preferences `{chosen, rejected}`.
- gsm8k: `{question, answer}`, the answer a solution that ends in `#### N`.
- math: Hendrycks' MATH `{problem, solution}`, the answer in the solution's last box.
- alpaca: `{instruction, input, output}`.
- sharegpt: `{conversations: [{from, value}, ...]}`.

Of the last two, `system`, `history` and `tools` are taken along, and what a turn says beside its
text, such as `weight`: fine-tuning reads them.

The rows are those of ChatLearn's documents: `sft`, `reward`, `alignment` (for dpo, and for rlhf and
online-dpo, which take its prompts) and `math` (for grpo).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import CONTEXT_KEYS, context_at, is_nothing, system_at, tools_at
from alignctl.data.rows.preference_schemas import preference_schema_of
from alignctl.data.rows.schemas import ASSISTANT, HUMAN, Conversation, Schema
from alignctl.data.rows.values import mismatch, text_at
from alignctl.errors import UserError
from alignctl.rewards.marks import find_boxed, find_marked

Kind = Literal["sft", "reward", "alignment", "math"]
Name = Literal["hh", "gsm8k", "math", "alpaca", "sharegpt"]

DROPPED = {
    "other_prompt": "answers to different prompts",
    "identical": "the same answer twice",
    "empty": "without an answer",
    "no_final_answer": "without a final answer",
    "turns": "turns that do not alternate, or of others than a user and an assistant",
    "repeated": "the same row as an earlier one",
}
"""Why a row is left out, and how that is told."""

# GSM8K writes each calculation twice: 48/2 = <<48/2=24>>24.
_CALCULATION = re.compile(r"<<[^<>]*>>")
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


@dataclass(frozen=True)
class Made:
    """What a row becomes.

    Attributes:
        rows: A row for each kind of file.
        prompt: What it asks: rows that ask the same are held out together.
    """

    rows: dict[Kind, dict[str, object]]
    prompt: str


@dataclass(frozen=True)
class Format:
    """A data set.

    Attributes:
        keys: What its rows have.
        convert: What a row becomes, or why it is left out: a key of `DROPPED`.
        kinds: The files that are written.
        hub: Where it is on the Hugging Face hub.
        optional: Further keys that are read.
    """

    keys: tuple[str, ...]
    convert: Callable[[Row], Made | str]
    kinds: tuple[Kind, ...]
    hub: str
    optional: tuple[str, ...] = ()

    def unread(self, row: Row) -> list[str]:
        """Return the keys of a row that nothing reads."""
        return Schema(self.keys, self.convert, self.optional).unread(row)


def _hh(row: Row) -> Made | str:
    comparison = preference_schema_of(row).parse(row)
    pairs = [_prompt_and_answer(answer) for answer in comparison.answers]
    (prompt, chosen), (other_prompt, rejected) = pairs
    if not chosen.strip() or not rejected.strip():
        return "empty"
    if prompt.strip() != other_prompt.strip():
        return "other_prompt"
    if chosen == rejected:
        return "identical"
    return Made(
        {
            "sft": {"prompt": prompt, "response": chosen},
            "reward": {"query": prompt, "response": [chosen, rejected], "score": [1.0, 0.0]},
            "alignment": {"prompt": prompt, "response": chosen, "rejected": rejected},
        },
        prompt,
    )


def _prompt_and_answer(conversation: Conversation) -> tuple[str, str]:
    """Return the text before the last turn, with the marker's one space, and that in it."""
    rendered = conversation.own
    assert rendered is not None  # HH texts have text of their own
    if not rendered.spans:
        return rendered.text, ""
    start, end = rendered.spans[-1]
    prompt, answer = rendered.text[:start], rendered.text[start:end]
    return prompt if prompt.endswith(" ") else f"{prompt} ", answer.lstrip(" ")


def _gsm8k(row: Row) -> Made | str:
    question, solution = text_at(row, "question").strip(), text_at(row, "answer")
    answer = (find_marked(solution) or "").strip().replace(",", "")
    if not answer:
        return "no_final_answer"
    return _solved(question, _CALCULATION.sub("", solution).strip(), answer)


def _math(row: Row) -> Made | str:
    problem, solution = text_at(row, "problem").strip(), text_at(row, "solution")
    answer = find_boxed(solution)
    if answer is None or not answer.strip():
        return "no_final_answer"
    return _solved(problem, solution.strip(), answer.strip())


def _solved(question: str, solution: str, answer: str) -> Made:
    prompt = HUMAN + question + ASSISTANT
    return Made(
        {
            "sft": {"query": question, "response": solution},
            "math": {"prompt": prompt, "answer": answer, "eval_func": "math_rule"},
        },
        question,
    )


def _alpaca(row: Row) -> Made | str:
    instruction, output = text_at(row, "instruction"), text_at(row, "output")
    given = text_at(row, "input") if row.record.get("input") else ""
    if not output.strip():
        return "empty"
    context_at(row), tools_at(row)  # what is taken along is looked at here
    made: dict[str, object] = {"instruction": instruction, "input": given, "output": output}
    return Made({"sft": made | _context(row, CONTEXT_KEYS)}, f"{instruction}\n{given}")


def _context(row: Row, keys: tuple[str, ...]) -> dict[str, object]:
    return {key: row.record[key] for key in keys if not is_nothing(row.record.get(key))}


def _sharegpt(row: Row) -> Made | str:
    turns = row.record.get("conversations")
    if not isinstance(turns, list):
        raise mismatch(row, "conversations", turns, "a list of {from, value}")
    messages: list[dict[str, Any]] = []
    for place, turn in enumerate(turns):
        name = f"conversations[{place}]"
        if not isinstance(turn, dict):
            raise mismatch(row, name, turn, "an object {from, value}")
        inner = Row(row.file, row.line, turn)
        role = _ROLES.get(text_at(inner, "from"))
        if role is None:
            return "turns"
        further = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({"role": role, "content": text_at(inner, "value"), **further})
    system_at(row), tools_at(row)
    head = messages[:1] if messages and messages[0]["role"] == "system" else []
    return _alternating(head, messages[len(head) :], _context(row, ("system", "tools")))


def _alternating(
    head: list[dict[str, Any]], turns: list[dict[str, Any]], context: dict[str, object]
) -> Made | str:
    """Cut a chat to its first user and last assistant turn; exports begin and end anywhere."""
    if turns and turns[0]["role"] == "assistant":
        turns = turns[1:]
    if turns and turns[-1]["role"] == "user":
        turns = turns[:-1]
    if any(turn["role"] != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
        return "turns"
    if not any(turn["content"].strip() for turn in turns[1::2]):
        return "empty"
    return Made({"sft": {"messages": [*head, *turns], **context}}, turns[0]["content"])


FORMATS: dict[Name, Format] = {
    "hh": Format(("chosen", "rejected"), _hh, ("sft", "reward", "alignment"), "Anthropic/hh-rlhf"),
    "gsm8k": Format(("question", "answer"), _gsm8k, ("sft", "math"), "openai/gsm8k"),
    "math": Format(("problem", "solution"), _math, ("sft", "math"), "EleutherAI/hendrycks_math"),
    "alpaca": Format(
        ("instruction", "output"),
        _alpaca,
        ("sft",),
        "tatsu-lab/alpaca",
        ("input", *CONTEXT_KEYS),
    ),
    "sharegpt": Format(
        ("conversations",),
        _sharegpt,
        ("sft",),
        "anon8231489123/ShareGPT_Vicuna_unfiltered",
        ("system", "tools"),
    ),
}


def check_keys(row: Row, name: Name) -> None:
    """Refuse a (first) row that is not of a data set, and name the one that it is of."""
    if all(key in row.record for key in FORMATS[name].keys):
        return
    found = ", ".join(sorted(row.record)) or "none"
    others = [n for n, f in FORMATS.items() if all(key in row.record for key in f.keys)]
    raise UserError(
        f"{row.where}: not a row of {name}, which has {' and '.join(FORMATS[name].keys)} "
        f"(its keys: {found})",
        f"did you mean alignctl prepare {others[0]}?" if others else None,
    )
