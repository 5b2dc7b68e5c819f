import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from alignctl.reporting.page import drawing
from alignctl.reporting.page.answers import side_by_side
from alignctl.reporting.page.benchmark import Benchmark
from alignctl.reporting.page.benchmark import read as read_marks
from alignctl.reporting.page.evaluations import read as read_results
from alignctl.reporting.page.page import Material, is_ours, pictures, render
from alignctl.reporting.page.recorded_run import RecordedRun, read
from tests.reporting import run_folders

EVIL = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"


class Reader(HTMLParser):
    """What a browser would find: elements, and text that people see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def labels(self) -> list[str | None]:
        """Of the charts."""
        return [attributes.get("aria-label") for tag, attributes in self.tags if tag == "svg"]


def page(*runs: RecordedRun, **more: Any) -> Reader:
    material = Material(runs, more.pop("benchmark", Benchmark()), more.pop("asked", []), **more)
    return Reader(render(material))


def run(folder: Path, *rows: dict[str, Any], **config: Any) -> RecordedRun:
    return read(run_folders.write(folder, rows, **config), folder.name)


def test_runs_are_overlaid_chart_by_chart(tmp_path: Path) -> None:
    a = run(tmp_path / "a", run_folders.train(1, loss=1.0), run_folders.train(2, loss=0.5))
    b = run(tmp_path / "b", run_folders.train(1, loss=2.0, kl=0.1))
    found = page(a, b)
    assert found.labels() == ["Loss of a, b over steps", "KL of b over steps"]
    groups = [attributes.get("class") for tag, attributes in found.tags if tag == "g"]
    assert [group for group in groups if group] == ["run-0", "run-1", "run-1"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [run_folders.start(5)],
        [run_folders.start(1), run_folders.train(1, loss=2.0)],
        [run_folders.train(1, loss="nan", kl="inf"), run_folders.train(2, loss="nan")],
        [run_folders.train(1, loss=0.0)],
        [run_folders.train(n, loss=10.0 ** (n - 5), loss_1=1.0) for n in range(1, 10)],
        [run_folders.validation(0, loss=1.0)],
        [run_folders.train(1, **{"a $b_{c} <d>": 1.0, r"\frac": 2.0})],
        [run_folders.train(n, loss=1e300 * (-1) ** n) for n in range(1, 9)],
    ],
    ids=["nothing", "begun", "one", "no numbers", "zero", "decades", "held out", "names", "huge"],
)
def test_a_run_in_any_state_has_a_page(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = page(run(tmp_path / "a", *rows))
    measured = {
        name
        for row in rows
        if row["kind"] != "start"
        for name in row.keys() - {"kind", "step", "time"}
    }
    assert len(found.labels()) == len(measured)


def test_what_is_no_number_is_said(tmp_path: Path) -> None:
    a = run(tmp_path / "a", run_folders.train(7, loss="nan"), run_folders.train(8, loss="inf"))
    assert "a: 2 values are no finite numbers, the first at step 7" in page(a).text


def test_how_far_each_run_is_and_what_it_reached(tmp_path: Path) -> None:
    rows = [run_folders.start(10), run_folders.validation(0, loss=6.5)]
    rows += [run_folders.validation(10, loss=0.25)]
    finished = run_folders.finish(run_folders.write(tmp_path / "a", rows), steps=10)
    halted = run(tmp_path / "b", run_folders.start(10), run_folders.train(3, loss=1.0))
    text = page(read(finished, "a"), halted).text
    assert "finished" in text
    assert "not finished: step 3 of 10" in text
    assert "6.5 -> 0.25" in text


def test_settings_that_differ_stand_apart_from_those_that_do_not(tmp_path: Path) -> None:
    a = run(tmp_path / "a", optimizer={"lr": 1e-5, "beta1": 0.9})
    b = run(tmp_path / "b", optimizer={"lr": 2e-5, "beta1": 0.9})
    text = page(a, b).text
    differing, _, same = text.partition("Settings that differ")[2].partition("that are the same")
    assert "optimizer.lr" in differing
    assert "optimizer.beta1" in same


def test_text_of_a_run_stays_text(tmp_path: Path) -> None:
    """Prompt, answer, note, key, value, metric, model, file: each tries to be an element."""
    folder = tmp_path / "a"
    run_folders.write_answers(
        folder / "samples" / "episode_0000001.jsonl",
        [{"prompt": EVIL, "answer": EVIL, "rule": EVIL}],
    )
    rows = [
        {"kind": "note", "step": 0, "time": 0, "text": f"warning: {EVIL}"},
        {"kind": "preview", "step": 0, "time": 0, "pieces": [[EVIL, True], [EVIL, False]]},
        run_folders.train(1, **{EVIL: 1.0}),
    ]
    a = run(folder, *rows, **{EVIL: EVIL})
    a.name = a.commands = EVIL
    a.environment = {EVIL: EVIL}
    marks = read_marks(
        [run_folders.write_marks(tmp_path / "m", **{EVIL: {EVIL: 1.0, "b": 2, "c": 3}})]
    )
    asked = side_by_side([a], [], {})
    found = page(a, benchmark=marks, asked=asked, damaged=[EVIL])
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "img", "iframe", "object", "a", "base", "form"}
    assert not [
        name for _, attributes in found.tags for name in attributes if name.startswith("on")
    ]
    assert found.text.count(EVIL) >= 12


def test_a_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    a = run(tmp_path / "a", run_folders.train(1, loss=1.0))
    text = render(Material([a], Benchmark(), []))
    found = Reader(text)
    places = [
        value
        for _, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "data") and value
    ]
    assert all(value.startswith(("#", "data:,")) for value in places)
    assert "url(http" not in text
    assert "@import" not in text
    policies = [a.get("content") for _, a in found.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_keys_are_not_shown(tmp_path: Path) -> None:
    a = run(tmp_path / "a", judge={"api_key": "precious-1"}, url="https://u:precious-2@h/")
    a.commands = "alignctl eval judge.api_key=precious-3"
    a.result = {"hf_token": "precious-4"}
    assert "precious" not in render(Material([a], Benchmark(), []))


def test_every_color_comes_from_the_theme_and_every_name_is_there_once(tmp_path: Path) -> None:
    rows = [run_folders.train(n, loss=1.0 / n, kl=1.0) for n in range(1, 100)]
    text = render(Material([run(tmp_path / "a", *rows)], Benchmark(), []))
    body = text.partition("<body>")[2]
    assert not re.findall(r"#0a0b[0-9a-f]{2}", body)
    assert set(re.findall(r"(?:stroke|fill): (#[0-9a-f]+)", body)) == set()
    names = re.findall(r'\bid="([^"]+)"', body)
    assert len(names) == len(set(names))
    references = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', body))
    assert {a or b for a, b in references} <= set(names)


def test_marks_stand_by_category_with_the_best_in_bold(tmp_path: Path) -> None:
    file = run_folders.write_marks(
        tmp_path / "m",
        sft={"coding": 2.05, "math": 1.15, "stem": 6.05},
        dpo={"coding": 2.17, "math": 1.25, "stem": 6.77},
    )
    found = page(benchmark=read_marks([file]))
    assert found.labels() == ["MT-Bench marks of sft, dpo by category"]
    assert [a for tag, a in found.tags if tag == "td" and "best" in (a.get("class") or "")]
    assert "STEM" in found.text
    assert "3.50 to 4.50" in found.text
    few = run_folders.write_marks(tmp_path / "few", sft={"coding": 2.0})
    assert page(benchmark=read_marks([few])).labels() == []


def test_evaluations_are_drawn_in_the_colors_of_their_runs(tmp_path: Path) -> None:
    """Bars and their intervals: of the run b its own, of a model that is no run a new one."""
    runs = [run(tmp_path / "a"), run(tmp_path / "b")]
    share = {"value": 0.25, "interval": [0.125, 0.5]}
    models = {"b": {"exact_match": share, "problems": 7}, EVIL: {"exact_match": share}}
    folder = run_folders.write_result(tmp_path / "math", "math", **models)
    found = page(*runs, evaluations=read_results([folder]))
    assert found.labels() == [f"Math: b, {EVIL}"]
    groups = [attributes.get("class") for tag, attributes in found.tags if tag == "g"]
    assert sorted(group for group in groups if group) == ["run-1", "run-1", "run-2", "run-2"]
    assert found.text.count("25.0 [12.5, 50.0]") == 2
    assert "script" not in {tag for tag, _ in found.tags}


def test_an_evaluation_without_shares_is_a_table(tmp_path: Path) -> None:
    folder = run_folders.write_result(
        tmp_path / "tasks", "math", a={"exact_match": {}, "problems": 7}
    )
    found = page(evaluations=read_results([folder]))
    assert found.labels() == []
    assert "exact match" in found.text


def test_more_runs_than_colors_are_still_told_apart(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / f"r{n}", run_folders.train(1, loss=1.0)) for n in range(drawing.COLORS + 2)
    ]
    assert len(page(*runs).labels()) == 1


def test_pictures_show_the_same_charts(tmp_path: Path) -> None:
    a = run(tmp_path / "a", run_folders.train(1, loss=1.0, **{"x/../y": 2.0}))
    marks = read_marks([run_folders.write_marks(tmp_path / "m", a={"b": 1.0, "c": 2, "d": 3})])
    math = run_folders.write_result(tmp_path / "math", "math", a={"win_rate": {"value": 0.5}})
    found = pictures(Material([a], marks, [], evaluations=read_results([math])))
    assert sorted(found) == ["evaluation_1.png", "loss.png", "mt_bench.png", "x_.._y.png"]
    assert all(content.startswith(b"\x89PNG") for content in found.values())


def test_a_page_is_known_as_ours(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(Material([], Benchmark(), [])))
    assert is_ours(file)
    file.write_text(json.dumps({"generator": "alignctl"}))
    assert not is_ours(file)
