"""From ratings to the table: means, and how far chance alone may move them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignctl.evaluation.mt_bench.questions import QuestionId
from alignctl.evaluation.statistics import Interval, bootstrap

CATEGORIES = {
    "coding": "Coding",
    "extraction": "Extraction",
    "humanities": "Humanities",
    "math": "Math",
    "reasoning": "Reasoning",
    "roleplay": "Roleplay",
    "stem": "STEM",
    "writing": "Writing",
}
"""MT-Bench's categories in the order of the tables, and their names there."""

_NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Mark:
    """A number for an answer, such as a rating or 1 for a win.

    Attributes:
        question: Whose answer it is.
        category: The question's.
        value: The number; None when the judge gave none.
    """

    question: QuestionId
    category: str
    value: float | None


@dataclass(frozen=True)
class Summary:
    """What a model has reached.

    Attributes:
        categories: The mean of each category's marks; None where there is none.
        average: The mean of all marks; None when there is none.
        interval: 95% of the averages of other questions of this kind lie between these.
        num_marks: Marks asked for.
        num_missing: Of these, marks that the judge gave no number for; they are in no mean.
    """

    categories: dict[str, float | None]
    average: float | None
    interval: Interval | None
    num_marks: int
    num_missing: int


def summarize(marks: Sequence[Mark]) -> Summary:
    """Compute means of marks: by category, and of all together as FastChat does."""
    by_category: dict[str, list[float]] = {mark.category: [] for mark in marks}
    for mark in marks:
        if mark.value is not None:
            by_category[mark.category].append(mark.value)
    values = [value for found in by_category.values() for value in found]
    return Summary(
        {
            name: _mean(by_category[name])
            for name in sorted(by_category, key=lambda name: (name not in CATEGORIES, name))
        },
        _mean(values),
        interval(marks),
        len(marks),
        len(marks) - len(values),
    )


def interval(marks: Sequence[Mark]) -> Interval | None:
    """Compute a 95% interval of the mean by the percentile bootstrap, over questions.

    Both turns of a question are drawn together: they are no two independent answers. The same
    marks give the same interval.

    Returns:
        The bounds; None for fewer than two questions with marks.
    """
    of_question: dict[QuestionId, list[float]] = {}
    for mark in marks:
        if mark.value is not None:
            of_question.setdefault(mark.question, []).append(mark.value)
    if len(of_question) < 2:
        return None
    marked = of_question.values()
    return bootstrap(
        [sum(found) for found in marked], [len(found) for found in marked], resamples=_NUM_RESAMPLES
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def category_rows(summaries: Mapping[str, Summary], digits: str = ".2f") -> dict[str, list[str]]:
    """Make the table's rows of categories and Avg: a cell for each model, a dash for no value."""
    found = [*CATEGORIES, *(name for each in summaries.values() for name in each.categories)]
    rows = {
        CATEGORIES.get(name, name.capitalize()): [
            _number(each.categories.get(name), digits) for each in summaries.values()
        ]
        for name in dict.fromkeys(found)
    }
    rows["Avg"] = [_number(each.average, digits) for each in summaries.values()]
    rows["95% interval"] = [_span(each.interval, digits) for each in summaries.values()]
    return rows


def _number(value: float | None, digits: str) -> str:
    """Format the number of a cell."""
    return "-" if value is None else format(value, digits)


def _span(interval: Interval | None, digits: str) -> str:
    return (
        "-" if interval is None else f"[{', '.join(format(bound, digits) for bound in interval)}]"
    )
