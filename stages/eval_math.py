"""How many problems models solve: final answers compared by the rule that on-policy stages use.

    alignctl eval math runs/sft runs/grpo --data gsm8k/test.jsonl --output runs/math

Rows are GSM8K's, or prompts with `answer` (and `eval_func`; math_rule where there is none). With
`samples` above 1, pass@k is estimated for powers of two, and intervals come from resampled
problems; else from Wilson's score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from alignctl import console
from alignctl.config.generation import MathOptions
from alignctl.data.rows.files import read_rows
from alignctl.data.rows.prompt_schemas import GSM8K_RULE, Question
from alignctl.errors import UserError
from alignctl.evaluation import prompts, results
from alignctl.evaluation.answering import answer
from alignctl.evaluation.generation import Generator
from alignctl.evaluation.prompts import PromptFile
from alignctl.evaluation.statistics import bootstrap, pass_at_k, wilson
from alignctl.reporting.page.tables import percent
from alignctl.reporting.progress.rows import RowsProgress
from alignctl.rewards.rules import RULES, Reason
from alignctl.rewards.workers import RuleWorkers, Task
from alignctl.stages.shared.own_rewards import check_functions, score_answers
from alignctl.user_files import reading

_BATCH = 256
"""Comparisons between two lines of progress."""


@dataclass(frozen=True)
class Solved:
    """What became of a model's answers.

    Attributes:
        reasons: What the rule found, for each problem a list by sample.
        num_full: Answers that ended because they may not be longer.
        mean_tokens: Tokens of an answer.
    """

    reasons: list[list[Reason]]
    num_full: int
    mean_tokens: float


def run(options: MathOptions, *, as_json: bool) -> None:
    """Ask every model every problem, and print the table.

    Raises:
        UserError: An input is wrong; nothing was started.
        RunError: vLLM failed, or the disk is full. What was answered is kept.
    """
    check_functions(options.functions)
    file = _problems(options)
    names = results.names_of(options.models)
    generators = [
        Generator(model, options, tokenizer=options.tokenizer) for model in options.models
    ]
    results.make_folder(options.output)
    found: dict[str, Solved] = {}
    rewarded: dict[str, dict[str, Any]] = {name: {} for name in names}
    with RuleWorkers(options.workers, options.timeout_seconds) as workers:
        for name, generator in zip(names, generators, strict=True):
            answers = options.output / f"{name}.jsonl"
            answer(generator, file, answers)
            found[name] = _judged(answers, file, options, workers)
            if options.functions:
                rewarded[name] = _rewarded(answers, file, options)
    measured = {name: measure(each) | rewarded[name] for name, each in found.items()}
    text = results.write(
        options.output,
        {
            "eval": "math",
            "data": str(options.data),
            "data_sha256": file.digest,
            "settings": options.model_dump(mode="json"),
            "models": {
                name: {
                    "model": generator.source.description,
                    "max_new_tokens": generator.settings.max_new_tokens,
                    **measured[name],
                }
                for name, generator in zip(names, generators, strict=True)
            },
        },
    )
    console.emit(text if as_json else _table(measured))


def _problems(options: MathOptions) -> PromptFile:
    """Read the problems, and check that each has an answer and a rule that is known."""
    file = prompts.read(options.data, options.limit)
    for row, question in zip(file.rows, file.questions, strict=True):
        if question.answer is None:
            raise UserError(
                f"{row.where}: no answer in this row, so nothing can be compared with it",
                "rows are {question, answer} as in GSM8K, or prompts with the key answer",
            )
        if _rule(question) not in RULES:
            raise UserError(
                f"{row.where}: eval_func {question.eval_func!r} is not a rule that is known",
                f"known: {', '.join(sorted(RULES))}",
            )
    return file


def _rule(question: Question) -> str:
    return question.eval_func or GSM8K_RULE


def _judged(answers: Path, file: PromptFile, options: MathOptions, workers: RuleWorkers) -> Solved:
    with reading(answers, "it was changed; remove it, and the same command answers anew"):
        rows = [row.record for row in read_rows([answers])]
        lengths = [int(length) for row in rows for length in _listed(row["num_tokens"])]
        num_full = sum(end == "length" for row in rows for end in _listed(row["finish"]))
        tasks = [
            Task(str(text), str(question.answer), _rule(question))
            for question, row in zip(file.questions, rows, strict=True)
            for text in _listed(row["response"])
        ]
    progress, reasons = RowsProgress("comparing"), []
    for start in range(0, len(tasks), _BATCH):
        verdicts = workers.verdicts(tasks[start : start + _BATCH])
        reasons += [verdict.reason for verdict in verdicts]
        progress(len(reasons), len(tasks))
    n = options.samples
    return Solved(
        reasons=[reasons[start : start + n] for start in range(0, len(reasons), n)],
        num_full=num_full,
        mean_tokens=sum(lengths) / len(lengths),
    )


def _rewarded(answers: Path, file: PromptFile, options: MathOptions) -> dict[str, Any]:
    """Compute what rewards of one's own say: their means, and where they failed."""
    said = [_listed(row.record["response"]) for row in read_rows([answers])]
    told: dict[str, Any] = {}
    scores = score_answers(options.functions, options.workers, file, said)
    for label, values in scores.items():
        told[f"reward_{label}"] = float(np.nanmean(values))
        told[f"reward_{label}_failed"] = int(np.isnan(values).sum())
    return told


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def measure(solved: Solved) -> dict[str, Any]:
    """Compute the numbers of one model, as JSON values; shares are of 1, intervals of 95 %."""
    attempts = len(solved.reasons[0])
    correct = [reasons.count("correct") for reasons in solved.reasons]
    measured: dict[str, Any] = {"problems": len(correct), "samples": attempts}
    for k in _ks(attempts):
        values = [pass_at_k(attempts, each, k) for each in correct]
        interval = wilson(sum(correct), len(correct)) if attempts == 1 else bootstrap(values)
        name = "exact_match" if k == 1 else f"pass@{k}"
        measured[name] = {"value": sum(values) / len(values), "interval": list(interval)}
    flat = [reason for reasons in solved.reasons for reason in reasons]
    reasons: Sequence[Reason] = get_args(Reason)
    measured |= {reason: flat.count(reason) for reason in reasons}
    return measured | {"at_max_new_tokens": solved.num_full, "mean_tokens": solved.mean_tokens}


def _ks(attempts: int) -> list[int]:
    """List the k of pass@k: 1, 2, 4, ... and the number of attempts itself."""
    return sorted({2**power for power in range(attempts.bit_length())} | {attempts})


def _table(measured: dict[str, dict[str, Any]]) -> str:
    models = list(measured.values())
    rows = {"problems": [f"{each['problems']:,}" for each in models]}
    for key, value in models[0].items():
        if isinstance(value, dict):
            name = "exact match %" if key == "exact_match" else f"{key} %"
            rows[name] = [percent(e[key]["value"], e[key]["interval"]) for e in models]
    for key in ("no_answer", "timeout", "crashed", "bad_reference", "at_max_new_tokens"):
        rows[key.replace("_", " ")] = [f"{each[key]:,}" for each in models]
    for key in (key for key in models[0] if key.startswith("reward_")):
        rows[key.replace("_", " ", 1)] = [f"{each[key]:,.4g}" for each in models]
    rows["tokens per answer"] = [f"{each['mean_tokens']:.1f}" for each in models]
    return results.table("", list(measured), rows)
