"""Charts as matplotlib figures, and figures as SVG that takes its colours from the page around it.

matplotlib draws in one theme, but a page has a light and a dark one, and is printed too. So the
figures are drawn in marker colours that nothing else has; in the SVG these become CSS variables.
"""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from alignctl.reporting.page.charts import Chart, Line

COLORS = 8
"""Runs that are told apart by colour; more of them share colours and are drawn dash-dotted."""

_BAD_SHOWN = 200
"""Crosses of values that are no numbers; more would be a bar."""


@dataclass(frozen=True)
class Bar:
    """A percentage of one model; `model` is its number among all that the page tells apart."""

    model: int
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Palette:
    """The colours of a figure."""

    ink: str
    muted: str
    grid: str
    bad: str
    runs: tuple[str, ...]


LIGHT = Palette(
    ink="#1b1f24",
    muted="#57606a",
    grid="#d8dee4",
    bad="#cf222e",
    runs=("#0b62c4", "#c2410c", "#12793d", "#8e3bb0", "#8a6100", "#0e7c86", "#b8266b", "#4d5560"),
)
"""For PNG, and for paper; each has a contrast of 4.5 or more on white."""

DARK = Palette(
    ink="#e6edf3",
    muted="#9aa4af",
    grid="#30363d",
    bad="#ff7b72",
    runs=("#6cb6ff", "#ff9f68", "#5bd18b", "#d2a8ff", "#e3b341", "#56d4dd", "#ff8fc0", "#b1bac4"),
)

_MARKERS = Palette(
    ink="#0a0b01",
    muted="#0a0b02",
    grid="#0a0b03",
    bad="#0a0b04",
    runs=tuple(f"#0a0b{16 + n:02x}" for n in range(COLORS)),
)

_RUN = re.compile(r'<g id="run-(\d+)">')
_OTHER_GROUP = re.compile(r'<g id="[^"]*">')
_FONT = re.compile(r"; font-family: [^;\"]*|font-family: [^;\"]*; ?")


def variables(palette: Palette) -> dict[str, str]:
    """Name the colours of a palette as CSS variables."""
    named = {"ink": palette.ink, "muted": palette.muted, "grid": palette.grid, "bad": palette.bad}
    return named | {f"run-{n}": color for n, color in enumerate(palette.runs)}


def draw(
    chart: Chart, lines: Sequence[Line], *, unit: str, names: Sequence[str] | None = None
) -> Figure:
    """Draw a chart of runs over their steps.

    Args:
        chart: What is drawn.
        lines: Of each run, in `LIGHT` or, without names, in marker colours for `svg`.
        unit: What steps are called.
        names: Of all runs, for a picture that stands alone.
    """
    palette = LIGHT if names else _MARKERS
    with _style(palette):
        figure = Figure(figsize=(4.8, 3.4 if names else 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _add(axes, line, palette)
        if _spans_decades(lines):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axes.set_xlabel(unit, parse_math=False)
        axes.margins(x=0.02)
        if names:
            title = f"{chart.title}: {chart.about}" if chart.about else chart.title
            axes.set_title(textwrap.fill(title, 60), fontsize=9, parse_math=False)
            _add_legend(figure, lines, names, palette)
    return figure


def _add_legend(
    figure: Figure, lines: Sequence[Line], names: Sequence[str], palette: Palette
) -> None:
    """Add a legend that names each run's line; dotted lines are of held-out rows."""
    shown = sorted({line.run for line in lines})
    handles = [
        Line2D([], [], color=palette.runs[run % COLORS], ls="-" if run < COLORS else "-.")
        for run in shown
    ]
    labels = [names[run] for run in shown]
    if any(line.is_validation for line in lines):
        handles.append(Line2D([], [], color=palette.muted, ls=(0, (4, 2)), marker="o", ms=3.5))
        labels.append("held out")
    _write_legend(figure, handles, labels)


def draw_radar(
    categories: Sequence[str],
    models: Mapping[str, Sequence[float]],
    colors: Mapping[str, int],
    *,
    with_legend: bool,
) -> Figure:
    """Draw scores from 0 to 10 of several models, one spoke for each category.

    Args:
        categories: Three or more.
        models: Name to the scores in the order of the categories; NaN where there is none.
        colors: Name to its number among all that the page tells apart.
        with_legend: For a picture that stands alone; drawn in `LIGHT` then.
    """
    palette = LIGHT if with_legend else _MARKERS
    angles = np.linspace(0, 2 * np.pi, len(categories), endpoint=False)
    with _style(palette):
        figure = Figure(figsize=(4.8, 3.8), layout="constrained")
        axes = figure.add_subplot(projection="polar")
        axes.set_theta_offset(np.pi / 2)  # type: ignore[attr-defined]
        axes.set_theta_direction(-1)  # type: ignore[attr-defined]
        for name, scores in models.items():
            closed = [*scores, scores[0]]
            color = palette.runs[colors[name] % COLORS]
            group = f"run-{colors[name]}"
            [line] = axes.plot(
                [*angles, angles[0]], closed, color=color, linewidth=1.6, label=name, gid=group
            )
            line.set_marker("o")
            line.set_markersize(3)
        axes.set_ylim(0, 10)
        axes.set_yticks([2, 4, 6, 8, 10], ["2", "4", "6", "8", "10"], fontsize=7)
        axes.set_xticks(angles, list(categories), parse_math=False)
        axes.tick_params(axis="x", pad=8)
        axes.spines["polar"].set_color(palette.grid)
        if with_legend:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_bars(
    groups: Mapping[str, Sequence[Bar]],
    names: Mapping[int, str],
    *,
    even: float | None,
    title: str | None = None,
) -> Figure:
    """Draw percentages of several models beside each other, with their intervals.

    Args:
        groups: What was measured, to a bar for each model that has it; the first one is on top.
        names: Of the models, by their numbers among all that the page tells apart.
        even: A percentage that is marked by a line.
        title: For a picture that stands alone; drawn in `LIGHT` then, with a legend.
    """
    palette = LIGHT if title else _MARKERS
    num_bars = sum(map(len, groups.values()))
    height = 0.8 + 0.22 * num_bars + 0.12 * len(groups) + (0.6 if title else 0.0)
    place, places = 0.0, []
    with _style(palette):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        axes = figure.add_subplot()
        for bars in groups.values():
            places.append(place + (len(bars) - 1) / 2)
            for bar in bars:
                _add_bar(axes, place, bar, palette)
                place += 1
            place += 0.6
        axes.set_yticks(places, [textwrap.fill(name, 22) for name in groups], parse_math=False)
        axes.set_ylim(place - 1.1, -0.5)  # from the top downwards
        highest = max(max(bar.interval or (bar.value,)) for bars in groups.values() for bar in bars)
        axes.set_xlim(0, 100 if even is not None or highest > 50 else None)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("%")
        if even is not None:
            axes.axvline(even, color=palette.muted, linewidth=1, ls=(0, (4, 2)))
        if title:
            axes.set_title(textwrap.fill(title, 60), fontsize=9, parse_math=False)
            _add_names(figure, names, palette)
    return figure


def svg(figure: Figure, label: str, salt: str) -> str:
    """Write a figure as an SVG element with the page's colour variables and with text as text.

    Args:
        figure: Drawn in marker colours.
        label: What it shows, for those who do not see it.
        salt: Makes the names within it unlike those of other figures on the page.
    """
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    name = escape(label, quote=True)
    body = text[text.index(">") + 1 :]
    text = f'<svg role="img" aria-label="{name}" viewBox="{box[1]}">{body}'
    # What groups are called is of no use, and the same in every figure; a page wants them unique.
    text = _RUN.sub(r'<g class="run-\1">', text)
    text = _OTHER_GROUP.sub("<g>", text)
    text = _FONT.sub("", text)
    for variable, marker in variables(_MARKERS).items():
        text = text.replace(marker, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", text)


def png(figure: Figure) -> bytes:
    """Write a figure as a PNG file, 960 pixels wide or more."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=200)
    return stream.getvalue()


def _add_bar(axes: Axes, place: float, bar: Bar, palette: Palette) -> None:
    group = f"run-{bar.model}"
    [drawn] = axes.barh(place, bar.value, height=0.8, color=palette.runs[bar.model % COLORS])
    drawn.set_gid(group)
    if bar.interval is not None:
        [error] = axes.plot(
            bar.interval, [place, place], color=palette.ink, linewidth=1.2, gid=group
        )
        error.set(marker="|", markersize=6)


def _add_names(figure: Figure, names: Mapping[int, str], palette: Palette) -> None:
    handles = [Patch(color=palette.runs[number % COLORS]) for number in names]
    _write_legend(figure, handles, list(names.values()))


def _write_legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


@contextmanager
def _style(palette: Palette) -> Iterator[None]:
    with rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": palette.ink,
            "axes.labelcolor": palette.muted,
            "axes.edgecolor": palette.grid,
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "grid.color": palette.grid,
            "grid.linewidth": 0.6,
            "xtick.color": palette.grid,
            "ytick.color": palette.grid,
            "xtick.labelcolor": palette.muted,
            "ytick.labelcolor": palette.muted,
            "path.simplify": True,
        }
    ):
        yield


_POINTS = 2
"""So few measurements are points, not a line."""


def _add(axes: Axes, line: Line, palette: Palette) -> None:
    color = palette.runs[line.run % COLORS]
    group = f"run-{line.run}"
    steps, values = line.points.steps, line.points.values
    # Between two points nothing was measured: a line would say that it was straight.
    is_line = len(steps) > _POINTS
    if line.is_validation:
        style: Any = (0, (4, 2)) if is_line else "none"
        [drawn] = axes.plot(steps, values, color=color, linewidth=1.2, ls=style, gid=group)
        drawn.set_marker("o")
        drawn.set_markersize(3.5)
    elif line.smooth is None:
        style = "none" if not is_line else "-" if line.run < COLORS else "-."
        dots = None if is_line else "o"
        axes.plot(
            steps, values, color=color, linewidth=1.6, linestyle=style, marker=dots, gid=group
        )
    else:
        style = "-" if line.run < COLORS else "-."
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35, gid=group)
        smooth = line.smooth
        axes.plot(smooth.steps, smooth.values, color=color, linewidth=1.8, ls=style, gid=group)
    if len(line.bad_steps):
        bad = line.bad_steps[:_BAD_SHOWN]
        foot = axes.get_xaxis_transform()
        [drawn] = axes.plot(bad, np.zeros(len(bad)), transform=foot, color=palette.bad, gid=group)
        drawn.set(marker="x", markersize=5, linestyle="none", clip_on=False)


def _spans_decades(lines: Sequence[Line]) -> bool:
    """Tell whether values are positive and so far apart that they need a logarithmic scale.

    The lowest and the highest hundredth of the values do not count: a single tiny value is no
    reason to draw all others close together.
    """
    known = [line.points.values[np.isfinite(line.points.values)] for line in lines]
    values = np.concatenate(known) if known else np.array([])
    if not len(values) or values.min() <= 0:
        return False
    low, high = np.quantile(values, [0.01, 0.99])
    return bool(high > 1000 * low)
