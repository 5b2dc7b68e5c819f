import json
from pathlib import Path

from alignctl import atomic
from alignctl.reporting.follow import Follower


def line(step: int, time: float) -> str:
    return json.dumps({"kind": "train", "step": step, "time": time}) + "\n"


def steps(follower: Follower) -> list[int]:
    return [row["step"] for row in follower.rows()]


def test_each_new_row_is_handed_out_once_and_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path, since=0.0)
    assert steps(follower) == []
    path.write_text(line(1, 1.0) + line(2, 2.0) + line(3, 3.0)[:10])
    assert steps(follower) == [1, 2]
    assert steps(follower) == []
    with path.open("a") as stream:
        stream.write(line(3, 3.0)[10:])
    assert steps(follower) == [3]


def test_rows_of_earlier_attempts_stay_hidden_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    old = line(1, 1.0) + line(2, 2.0)
    path.write_text(old + line(3, 3.0))
    follower = Follower(path, since=10.0)
    assert steps(follower) == []
    atomic.write_text(path, old)
    with path.open("a") as stream:
        stream.write(line(3, 11.0))
    assert steps(follower) == [3]
