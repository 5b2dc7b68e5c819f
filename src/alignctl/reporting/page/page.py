"""The report: one HTML page that needs no other file.

It holds no script and no address, and its own policy forbids them: the text of a run, which may be
anything that a model wrote, is only ever shown as text.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from alignctl import __version__
from alignctl.reporting.page import charts, drawing, redaction, rewards, tables
from alignctl.reporting.page.answers import Asked
from alignctl.reporting.page.benchmark import Benchmark
from alignctl.reporting.page.evaluations import Evaluation, Measure
from alignctl.reporting.page.recorded_run import RecordedRun
from alignctl.user_files import opened

GENERATOR = f"alignctl {__version__}"
_SIGN = '<meta name="generator" content="alignctl '
"""What tells a page of ours from any other file."""

_MIN_SPOKES = 3
"""Categories of the smallest radar that has an area."""

_MAX_MEASURES = 12
"""Of an evaluation's chart; of a hundred tasks, a table is what can be read."""


@dataclass(frozen=True)
class Material:
    """All that a page is made of.

    Attributes:
        runs: Whose curves, settings and results it shows; there may be none.
        benchmark: Marks of models.
        asked: Prompts with answers.
        damaged: What could not be read, said in words.
        evaluations: Other measurements of models.
        window: Measurements that a strong line is the mean of; None: by the length of each run.
    """

    runs: Sequence[RecordedRun]
    benchmark: Benchmark
    asked: Sequence[Asked]
    damaged: Sequence[str] = ()
    evaluations: Sequence[Evaluation] = ()
    window: int | None = None

    def unit(self, lines: Sequence[charts.Line]) -> str:
        """Say what the steps of a chart are called."""
        return " or ".join(sorted({self.runs[line.run].unit for line in lines}, reverse=True))

    @property
    def colors(self) -> dict[str, int]:
        """Numbers of the measured models: those of the runs of the same name, or new ones."""
        numbers = {run.name: place for place, run in enumerate(self.runs)}
        # Evaluations write a dash where runs have a slash.
        numbers |= {run.name.replace("/", "-"): place for place, run in enumerate(self.runs)}
        numbers |= {run.path.name: place for place, run in enumerate(self.runs)}
        names = [model.name for model in self.benchmark.models]
        names += [name for each in self.evaluations for name in each.models]
        found: dict[str, int] = {}
        for name in dict.fromkeys(names):
            taken = len(self.runs) + sum(number >= len(self.runs) for number in found.values())
            found[name] = numbers.get(name, taken)
        return found

    @property
    def title(self) -> str:
        """Title of the page."""
        names = " / ".join(run.name for run in self.runs)
        return names or ("MT-Bench" if not self.evaluations else "Evaluations")


@dataclass(frozen=True)
class _Drawn:
    chart: charts.Chart
    svg: str
    bad: list[str] = field(default_factory=list)
    """Of which runs values were no finite numbers, and how many."""


def is_ours(file: Path) -> bool:
    """Tell whether a file is a page that this module wrote."""
    with opened(file) as stream:
        return _SIGN.encode() in stream.read(4096)


def render(material: Material) -> str:
    """Write the whole page."""
    environment = Environment(
        loader=PackageLoader("alignctl.reporting.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mark"] = mark
    environment.filters["duration"] = duration
    environment.filters["date"] = date
    runs = material.runs
    main, others = charts.choose(runs)
    return environment.get_template("report.html").render(
        generator=GENERATOR,
        title=material.title,
        now=time.time(),
        runs=runs,
        damaged=material.damaged,
        statuses=[status(run) for run in runs],
        commands=[redaction.hide_in_commands(run.commands) for run in runs],
        warnings=[[redaction.hide("", text) for text in run.warnings] for run in runs],
        is_smoothed=any(
            line.smooth is not None
            for chart in main
            for line in charts.lines(chart, runs, material.window)
        ),
        main=[_drawn(chart, material) for chart in main],
        others=[_drawn(chart, material) for chart in others],
        benchmark=material.benchmark,
        colors=material.colors,
        radar=_radar(material),
        evaluations=[
            (each, _bars(each, material, number))
            for number, each in enumerate(material.evaluations)
        ],
        asked=material.asked,
        settings=tables.table([run.config for run in runs]),
        environment=tables.table([run.environment for run in runs]),
        progress=progress(main, runs),
        rewards=list(rewards.tabulate(runs)),
        results=tables.table([run.result or {} for run in runs], is_measured=True),
        light=drawing.variables(drawing.LIGHT),
        dark=drawing.variables(drawing.DARK),
        num_colors=drawing.COLORS,
    )


def pictures(material: Material) -> Mapping[str, bytes]:
    """Draw the same charts as PNG files: name to content."""
    found = {}
    main, others = charts.choose(material.runs)
    for chart in (*main, *others):
        lines = list(charts.lines(chart, material.runs, material.window))
        names = [run.name for run in material.runs]
        figure = drawing.draw(chart, lines, unit=material.unit(lines), names=names)
        name = re.sub(r"[^\w.-]", "_", chart.metric)
        found[f"{name}.png"] = drawing.png(figure)
    if len(material.benchmark.categories) >= _MIN_SPOKES:
        found["mt_bench.png"] = drawing.png(_radar_figure(material, with_legend=True))
    for number, evaluation in enumerate(material.evaluations):
        if _drawn_measures(evaluation):
            figure = _bars_figure(evaluation, material, title=evaluation.title)
            found[f"evaluation_{number + 1}.png"] = drawing.png(figure)
    return found


def status(run: RecordedRun) -> str:
    """Say how far a run has come."""
    if run.result is not None:
        return "finished"
    if run.total is None:
        return "not begun"
    return f"not finished: {run.unit} {run.last_step:,} of {run.total:,}"


def progress(main: Sequence[charts.Chart], runs: Sequence[RecordedRun]) -> list[tables.Row]:
    """Tabulate first and last measurements on held-out rows, for the first charts."""
    rows = []
    for chart in main:
        series = [run.validation.get(chart.metric) for run in runs]
        if any(each is not None for each in series):
            ends = [
                tables.ABSENT if each is None else _ends(each.values.tolist()) for each in series
            ]
            rows.append(tables.Row(chart.title, ends))
    return rows


def _ends(values: Sequence[float]) -> str:
    shown = [tables.number(values[0]), tables.number(values[-1])]
    return " -> ".join(shown[: len(values)])


def mark(value: float) -> str:
    """Write a judge's mark in two decimals, as the tutorials' tables have it; a dash for none."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Write how long a run has taken; a dash where nothing was measured."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def date(seconds: float) -> str:
    """Write a moment as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))


def _drawn(chart: charts.Chart, material: Material) -> _Drawn:
    lines = list(charts.lines(chart, material.runs, material.window))
    figure = drawing.draw(chart, lines, unit=material.unit(lines))
    names = ", ".join(dict.fromkeys(material.runs[line.run].name for line in lines))
    bad = [
        f"{material.runs[line.run].name}: {len(line.bad_steps):,} values are no finite numbers, "
        f"the first at {material.runs[line.run].unit} {line.bad_steps[0]:,}"
        for line in lines
        if len(line.bad_steps)
    ]
    label = f"{chart.title} of {names} over {material.unit(lines)}s"
    return _Drawn(chart, drawing.svg(figure, label, chart.metric), bad)


def _radar(material: Material) -> str | None:
    if len(material.benchmark.categories) < _MIN_SPOKES:
        return None
    names = ", ".join(model.name for model in material.benchmark.models)
    figure = _radar_figure(material, with_legend=False)
    return drawing.svg(figure, f"MT-Bench marks of {names} by category", "mt-bench")


def _radar_figure(material: Material, *, with_legend: bool) -> Any:
    benchmark = material.benchmark
    categories = benchmark.categories
    return drawing.draw_radar(
        [category.capitalize() if category != "stem" else "STEM" for category in categories],
        {model.name: [model.score(c) for c in categories] for model in benchmark.models},
        material.colors,
        with_legend=with_legend,
    )


def _drawn_measures(evaluation: Evaluation) -> list[Measure]:
    """Choose the measures that any model has, as many as a chart can show."""
    return [each for each in evaluation.measures if any(each.shares)][:_MAX_MEASURES]


def _bars(evaluation: Evaluation, material: Material, number: int) -> str | None:
    if not _drawn_measures(evaluation):
        return None
    label = f"{evaluation.title}: {', '.join(evaluation.models)}"
    return drawing.svg(_bars_figure(evaluation, material), label, f"evaluation-{number}")


def _bars_figure(evaluation: Evaluation, material: Material, *, title: str | None = None) -> Any:
    numbers = [material.colors[name] for name in evaluation.models]
    groups = {
        measure.name: [
            drawing.Bar(
                number,
                100 * share.value,
                (100 * share.interval[0], 100 * share.interval[1]) if share.interval else None,
            )
            for number, share in zip(numbers, measure.shares, strict=True)
            if share is not None
        ]
        for measure in _drawn_measures(evaluation)
    }
    return drawing.draw_bars(
        groups,
        dict(zip(numbers, evaluation.models, strict=True)),
        even=None if evaluation.even is None else 100 * evaluation.even,
        title=title,
    )
