"""What a judge is asked about answers, and what its replies make of them: table, summary, rows.

Zheng et al., arXiv 2306.05685: single answers graded (section 3.1), with references where there is
a right answer (3.4), and pairs compared in both orders (3.4). The table's mean is FastChat's: over
all ratings, whichever category they belong to.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl import atomic
from alignctl.evaluation.mt_bench.fastchat_answers import Answers
from alignctl.evaluation.mt_bench.grading import Grade, rating, verdict
from alignctl.evaluation.mt_bench.judge import Answers as Judged
from alignctl.evaluation.mt_bench.judge_endpoint import Endpoint
from alignctl.evaluation.mt_bench.judge_prompts import Mode, Prompt, Template, render
from alignctl.evaluation.mt_bench.questions import Question
from alignctl.evaluation.mt_bench.replies import Reply, readable
from alignctl.evaluation.mt_bench.scores import Mark, Summary, category_rows, summarize
from alignctl.evaluation.results import table

_SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Match:
    """What is asked about one turn of one question.

    Attributes:
        model: Whose answer is rated, or compared with the baseline's.
        question: The question.
        turn: 1 or 2.
        prompts: One prompt; for a comparison two: the model's answer is A, then it is B.
    """

    model: str
    question: Question
    turn: int
    prompts: tuple[Prompt, ...]


def matches(
    mode: Mode,
    questions: Sequence[Question],
    answers: Mapping[str, Answers],
    templates: Mapping[str, Template],
) -> list[Match]:
    """List all that a judge is asked; in a comparison the first model is the baseline.

    Args:
        mode: What is asked.
        questions: The questions.
        answers: Each model's, by its name.
        templates: Those of the mode.
    """
    names = list(answers) if mode == "single" else list(answers)[1:]
    baseline = next(iter(answers))

    def prompts(name: str, question: Question, turn: int) -> tuple[Prompt, ...]:
        own = answers[name][question.id]
        if mode == "single":
            return (render(templates, mode, question, turn, [own]),)
        other = answers[baseline][question.id]
        orders = ([own, other], [other, own])
        return tuple(render(templates, mode, question, turn, order) for order in orders)

    return [
        Match(name, question, turn, prompts(name, question, turn))
        for question in questions
        for turn in range(1, len(question.turns) + 1)
        for name in names
    ]


@dataclass(frozen=True)
class Result:
    """What came of the matches.

    Attributes:
        table: For the terminal.
        summary: For `mt_bench.json`: results by model.
        rows: For FastChat's file of judgments.
    """

    table: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def single_result(found: Sequence[Match], judged: Judged, endpoint: Endpoint) -> Result:
    """Collect the ratings of single answers."""
    marks: dict[str, list[Mark]] = {}
    problems: dict[str, Counter[str]] = {}
    rows = []
    for match in found:
        name = endpoint.name_of(match.prompts[0])
        reply = judged.replies.get(name)
        grade = rating(reply.text) if reply else Grade(None, "refused")
        marks.setdefault(match.model, []).append(_mark(match, grade.score))
        counts = problems.setdefault(match.model, Counter())
        if grade.problem:
            counts[grade.problem] += 1
        rows.append(
            _row(match, endpoint)
            | {
                "model": match.model,
                "judgment": reply.text if reply else "",
                "score": -1 if grade.score is None else grade.score,
            }
            | ({"problem": grade.problem} if grade.problem else {})
            | _when(reply)
        )
    summaries = {model: summarize(of_model) for model, of_model in marks.items()}
    return Result(
        table("Metric", list(summaries), category_rows(summaries) | _failures(summaries)),
        {
            model: _summary(summary) | {"problems": dict(problems[model])}
            for model, summary in summaries.items()
        },
        rows,
    )


def pairwise_result(
    found: Sequence[Match], judged: Judged, endpoint: Endpoint, baseline: str
) -> Result:
    """Count the wins, ties and losses of each model against the baseline."""
    marks: dict[str, list[Mark]] = {}
    counts: dict[str, Counter[str]] = {}
    rows = []
    for match in found:
        replies = [judged.replies.get(endpoint.name_of(prompt)) for prompt in match.prompts]
        winners = [
            _winner(reply, ("model_1", "model_2") if place == 0 else ("model_2", "model_1"))
            for place, reply in enumerate(replies)
        ]
        outcome = _outcome(winners)
        marks.setdefault(match.model, []).append(_mark(match, _SCORES.get(outcome)))
        counts.setdefault(match.model, Counter())[outcome] += 1
        if outcome == "tie" and winners[0] != winners[1]:
            counts[match.model]["disagreement"] += 1
        rows.append(
            _row(match, endpoint)
            | {"model_1": match.model, "model_2": baseline}
            | {f"g{n}_winner": winner for n, winner in enumerate(winners, 1)}
            | {f"g{n}_judgment": r.text if r else "" for n, r in enumerate(replies, 1)}
            | _when(*replies)
        )
    summaries = {model: summarize(of_model) for model, of_model in marks.items()}
    sums = {
        label: [str(counts[model][kind]) for model in summaries]
        for label, kind in (("Wins", "win"), ("Ties", "tie"), ("Losses", "loss"))
    }
    rates = category_rows(summaries, ".0%")
    return Result(
        table(f"Against {baseline}", list(summaries), rates | sums | _failures(summaries)),
        {
            model: _summary(summary)
            | {kind: counts[model][kind] for kind in ("win", "tie", "loss", "disagreement")}
            for model, summary in summaries.items()
        },
        rows,
    )


def write_result(
    folder: Path, mode: Mode, result: Result, endpoint: Endpoint, settings: Mapping[str, object]
) -> Path:
    """Write FastChat's judgments, and then the summary, which says that all is there.

    Returns:
        The summary's file.
    """
    kind = "single" if mode == "single" else "pair"
    judgments = folder / "model_judgment" / f"{readable(endpoint.model)}_{kind}.jsonl"
    judgments.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)
    atomic.write_text(judgments, "".join(lines))
    file = folder / ("mt_bench.json" if mode == "single" else "mt_bench_pairwise.json")
    content = {"models": result.summary, "judge": endpoint.model, "settings": dict(settings)}
    atomic.write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return file


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "categories": summary.categories,
        "average": summary.average,
        "interval": summary.interval,
        "failures": summary.num_missing,
        "judgments": summary.num_marks,
    }


def _failures(summaries: Mapping[str, Summary]) -> dict[str, list[str]]:
    """Make the row that counts the answers for which the judge gave no number."""
    return {"Failures": [f"{s.num_missing} of {s.num_marks}" for s in summaries.values()]}


def _mark(match: Match, value: float | None) -> Mark:
    return Mark(match.question.id, match.question.category, value)


def _row(match: Match, endpoint: Endpoint) -> dict[str, Any]:
    """Make the part that judgments of both kinds share, without FastChat's `user_prompt`.

    Nothing reads it, and it would repeat question, references and answers in every row.
    """
    return {
        "question_id": match.question.id,
        "judge": [endpoint.model, match.prompts[0].template],
        "turn": match.turn,
    }


def _when(*replies: Reply | None) -> dict[str, float]:
    return {"tstamp": max((reply.time for reply in replies if reply), default=0.0)}


def _winner(reply: Reply | None, names: tuple[str, str]) -> str:
    """Name the winner of a game as FastChat does: `names` are those of A and B."""
    found = verdict(reply.text) if reply else None
    if found is None:
        return "error"
    return {"A": names[0], "B": names[1], "tie": "tie"}[found]


def _outcome(winners: Sequence[str]) -> str:
    """Name the result for model_1 of the two games; to win in only one position is a tie."""
    if "error" in winners:
        return "failure"
    if winners[0] != winners[1] or winners[0] == "tie":
        return "tie"
    return "win" if winners[0] == "model_1" else "loss"
