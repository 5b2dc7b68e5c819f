"""The table of a run's several rewards."""

from pathlib import Path

from alignctl.reporting.page.benchmark import Benchmark
from alignctl.reporting.page.page import Material, render
from alignctl.reporting.page.recorded_run import read
from alignctl.reporting.page.rewards import Reward, tabulate
from tests.reporting import run_folders


def rows(count: int) -> list[dict[str, object]]:
    """The rule goes from 0.0 to 0.19, of deviation 0.5; the judge from 5 to 1, of deviation 1."""
    return [
        run_folders.train(
            step,
            reward_rule=step / 100,
            reward_rule_std=0.5,
            reward_rule_failed=0,
            reward_rule_share=0.75,
            reward_judge=5.0 if step < count // 2 else 1.0,
            reward_judge_std=1.0,
            reward_judge_failed=2,
            reward_judge_share=0.25,
            reward_judge_words=3.0,
            reward=1.0,
        )
        for step in range(count)
    ]


def test_rewards_are_told_by_how_far_they_moved(tmp_path: Path) -> None:
    """Tenths of 20 steps are two: 0.005 and 0.185 are 0.36 deviations apart."""
    run = read(run_folders.write(tmp_path / "run", rows(20)), "run")
    assert list(tabulate([run])) == [
        Reward(0, "judge", "5", "1", "-4.00", "25 %", "40"),
        Reward(0, "rule", "0.005", "0.185", "+0.36", "75 %", "0"),
    ]


def test_one_step_without_a_spread_has_not_moved(tmp_path: Path) -> None:
    row = run_folders.train(1, reward_a=2.0, reward_a_failed=1, reward_b_failed=4)
    run = read(run_folders.write(tmp_path / "run", [row]), "run")
    assert list(tabulate([run])) == [Reward(0, "a", "2", "2", "-", "-", "1")]


def test_the_page_has_the_table_where_there_are_several(tmp_path: Path) -> None:
    several = read(run_folders.write(tmp_path / "a", rows(20)), "a")
    one = read(run_folders.write(tmp_path / "b", [run_folders.train(1, score=1.0)]), "b")
    assert "<h2>Rewards</h2>" in render(Material([several, one], Benchmark(), []))
    assert "<h2>Rewards</h2>" not in render(Material([one], Benchmark(), []))
