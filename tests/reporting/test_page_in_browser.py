"""The page as a browser shows it; needs a Chromium (`apt install chromium`), and says so."""

from pathlib import Path

import pytest

from alignctl.stages import report
from tests.reporting import browser, run_folders

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.executable() is None,
        reason="NOT TESTED: no Chromium on this machine, so no browser has opened the page",
    ),
]

CHARTS = """
[...document.querySelectorAll("svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  const lines = [...svg.querySelectorAll("[class^=run-] path, [class^=run-] use")];
  const drawn = lines.filter(line => line.getBoundingClientRect().width > 0);
  return {
    name: svg.getAttribute("aria-label"), right: box.right, width: box.width,
    drawn: drawn.length, color: lines.length ? getComputedStyle(lines[0]).stroke : "",
  };
})
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them long and with gaps, marks, answers that are HTML."""
    home = tmp_path_factory.mktemp("report")
    rows = [run_folders.start(500)]
    for step in range(1, 301):
        loss = "nan" if 100 < step < 120 else 1 + 5 / step
        rows.append(run_folders.train(step, loss=loss, kl=step / 300, odd_name=1.0))
    a = run_folders.write(home / "a", rows, experience={"prompts": 8})
    rows = [run_folders.train(step, loss=2 + 3 / step) for step in range(1, 31)]
    b = run_folders.write(home / "b", [*rows, run_folders.validation(30, loss=2.0)])
    evil = "<script>document.title = 'evil'; console.log('evil')</script><img src='http://h/x.png'>"
    run_folders.write_answers(
        a / "samples" / "episode_0000001.jsonl", [{"prompt": evil, "answer": evil}]
    )
    marks = run_folders.write_marks(home / "marks", a={"coding": 1, "math": 2, "stem": 3})
    share = {"value": 0.25, "interval": [0.125, 0.5]}
    math = run_folders.write_result(home / "math", "math", a={"exact_match": share}, c={})
    report.run([a, b, marks.parent, math], output=home / "page.html", png=None, window=None)
    return home / "page.html"


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_every_chart_is_drawn_and_nothing_is_wrong(
    page: Path, tmp_path: Path, width: int, *, is_dark: bool
) -> None:
    """Also in what is folded away at first; within the width; in the theme's colours."""
    with browser.tab(tmp_path / "profile") as tab:
        tab.open(page, width=width, is_dark=is_dark)
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        charts = tab.evaluate(CHARTS)
        names = [chart["name"].split()[0] for chart in charts]
        assert names == ["Loss", "KL", "Odd", "MT-Bench", "Math:"]
        assert all(chart["drawn"] for chart in charts)
        assert all(chart["right"] <= width and chart["width"] > 250 for chart in charts)
        assert charts[0]["color"] == ("rgb(108, 182, 255)" if is_dark else "rgb(11, 98, 196)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.title") == "a / b"
        tab.screenshot(tmp_path / "page.png")
        assert tab.complaints == []
        assert all(address.startswith(("file:", "data:")) for address in tab.asked_for)


def test_a_box_hides_the_lines_of_its_run(page: Path, tmp_path: Path) -> None:
    with browser.tab(tmp_path / "profile") as tab:
        tab.open(page, width=1280, is_dark=False)
        before = tab.evaluate(CHARTS)[0]["drawn"]
        tab.evaluate("document.querySelector('#show-1').click()")
        assert 0 < tab.evaluate(CHARTS)[0]["drawn"] < before
        tab.evaluate("document.querySelector('#show-0').click()")
        assert tab.evaluate(CHARTS)[0]["drawn"] == 0


def test_complaints_and_requests_of_a_bad_page_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text("<script>console.error('x'); f()</script><img src='http://127.0.0.1:9/x.png'>")
    with browser.tab(tmp_path / "profile") as tab:
        tab.open(file, width=1280, is_dark=False)
        tab.evaluate("1")
        assert len(tab.complaints) >= 2
        assert "http://127.0.0.1:9/x.png" in tab.asked_for
