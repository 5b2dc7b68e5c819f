from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.stages import report
from tests.reporting import run_folders

pytestmark = pytest.mark.ci

Report = Callable[..., None]


def write(*paths: Path, output: Path | None = None, png: Path | None = None) -> None:
    report.run(list(paths), output=output, png=png, window=None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folders.write(tmp_path / "sft", [run_folders.train(1, loss=1.0)])


def test_the_page_of_one_run_goes_into_its_folder_and_is_replaced(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run)
    write(run)
    assert capsys.readouterr().out == f"{run / 'report.html'}\n" * 2
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert not list(run.glob(".*"))


def test_runs_marks_and_answers_go_onto_one_page(run: Path, tmp_path: Path) -> None:
    marks = run_folders.write_marks(tmp_path / "bench", a={"math": 1.0}).parent
    answers = run_folders.write_answers(
        tmp_path / "answers.jsonl", [{"prompt": "why?", "answer": "half a \ud83d character"}]
    )
    page, plots = tmp_path / "new" / "page.html", tmp_path / "plots"
    write(run, marks, answers, output=page, png=plots)
    text = page.read_text()
    assert all(part in text for part in ("Loss of sft", "MT-Bench", "why?", "half a ? character"))
    assert [file.name for file in plots.iterdir()] == ["loss.png"]


def test_damage_is_told_on_stderr_and_on_the_page(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "metrics.jsonl"
    file.write_text("nonsense\n" * 7 + file.read_text())
    write(run)
    warning = f"{file}: 7 lines are damaged and left out: 1, 2, 3, 4, 5 ..."
    assert capsys.readouterr().err.splitlines()[0] == f"warning: {warning}"
    assert warning in (run / "report.html").read_text()


def test_paths_that_are_nothing_are_all_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        write(run, tmp_path / "gone", tmp_path / "x.txt", tmp_path / "empty")
    assert caught.value.message.splitlines() == [
        f"{tmp_path / 'gone'}: there is no such file or folder",
        f"  {tmp_path / 'x.txt'}: no folder, and no .jsonl file",
        f"  {tmp_path / 'empty'}: neither a run folder nor a result of alignctl eval",
    ]


def test_several_paths_need_a_name_for_their_page(run: Path, tmp_path: Path) -> None:
    other = run_folders.write(tmp_path / "dpo")
    with pytest.raises(UserError, match="--output is missing"):
        write(run, other)


def test_nothing_but_a_page_of_ours_is_replaced(run: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("precious")
    with pytest.raises(UserError, match="no page that alignctl wrote"):
        write(run, output=thesis)
    with pytest.raises(UserError, match="is a folder"):
        write(run, output=tmp_path)
    assert thesis.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/page\.html: cannot be written"):
        write(run, output=tmp_path / "file" / "page.html")
