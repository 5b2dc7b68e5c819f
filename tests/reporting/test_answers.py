from pathlib import Path

from alignctl.reporting.page.answers import side_by_side
from alignctl.reporting.page.recorded_run import RecordedRun
from tests.reporting.run_folders import write_answers


def run(folder: Path, *episodes: list[dict[str, object]]) -> RecordedRun:
    for number, rows in enumerate(episodes, 1):
        write_answers(folder / "samples" / f"episode_{number:07d}.jsonl", rows)
    return RecordedRun(folder, folder.name, {})


def row(prompt: str, answer: str, **more: object) -> dict[str, object]:
    return {"prompt": prompt, "answer": answer, **more}


def test_prompts_that_most_have_answered_come_first(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [row("1+1", "3"), row("2+2", "5")], [row("2+2", "4")])
    b = run(tmp_path / "b", [row("2+2", "22", score=0.5, kl=1.25, is_finished=False)])
    generated = {"query": "2+2", "answer": "4", "response": ["four", "5"], "finish": ["length", ""]}
    file = write_answers(tmp_path / "base.jsonl", [generated])
    first, second = side_by_side([a, b], [("base.jsonl", file)], {})
    assert first.prompt == "2+2"
    assert [(answer.by, answer.run, answer.text) for answer in first.answers] == [
        ("a, episode 1", 0, "5"),
        ("a, episode 2", 0, "4"),
        ("b, episode 1", 1, "22"),
        ("base.jsonl", None, "four"),
    ]
    assert first.answers[2].remarks == "score 0.5 | KL 1.25 | cut off"
    assert first.answers[3].remarks == "expected 4 | cut off"
    assert second.prompt == "1+1"


def test_without_a_common_prompt_every_column_has_its_turn(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [row(f"a{n}", "x") for n in range(100)])
    b = run(tmp_path / "b", [row(f"b{n}", "x") for n in range(100)])
    asked = [each.prompt for each in side_by_side([a, b], [], {})]
    assert asked == [f"a{n}" for n in range(6)] + [f"b{n}" for n in range(6)]


def test_of_many_episodes_some_are_read_first_and_last_among_them(tmp_path: Path) -> None:
    many = run(tmp_path / "a", *([row("q", str(n))] for n in range(1, 101)))
    [asked] = side_by_side([many], [], {})
    assert [answer.text for answer in asked.answers] == ["1", "34", "67", "100"]


def test_damaged_rows_are_counted_and_long_or_odd_text_is_cut_and_cleaned(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    a = run(folder, [row("q", "\x00x\n\n\n" + "y" * 5000), {"prompt": 1, "answer": "z"}])
    file = folder / "samples" / "episode_0000001.jsonl"
    file.write_text(file.read_text() + "nonsense\n")
    damaged: dict[Path, list[int]] = {}
    [asked] = side_by_side([a], [], damaged)
    assert asked.answers[0].text.startswith("\ufffdx\nyyy")
    assert asked.answers[0].text.endswith("[... 5,003 characters]")
    assert damaged == {file: [3]}


def test_runs_without_samples_have_no_answers(tmp_path: Path) -> None:
    assert side_by_side([RecordedRun(tmp_path, "sft", {})], [], {}) == []
