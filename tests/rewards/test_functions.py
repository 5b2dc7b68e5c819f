"""Functions in users' files, which raise, sleep, leave, print and die."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignctl.config.rewards import RewardFunction
from alignctl.errors import RunError, UserError
from alignctl.rewards.functions import Functions
from alignctl.rewards.results import Answer, Result
from tests.rewards.reward_server import serving
from tests.rewards.test_workers import is_alive, parent_of

MODULE = """
import os, sys, time
from neighbour import POINTS

def score(prompt, completion, row):
    print("to stderr", end="")
    if completion == "raise":
        raise ValueError("no\\nanswer")
    if completion == "leave":
        sys.exit(0)
    if completion == "die":
        os.kill(os.getpid(), 9)
    if completion == "sleep":
        time.sleep(600)
    if completion == "nan":
        return float("nan")
    return {"score": POINTS[row["level"]] * len(completion), "asked": len(prompt)}

def many(prompts, completions, rows):
    if "raise" in completions:
        raise KeyError("many")
    return [score(*each) for each in zip(prompts, completions, rows)]

def none(prompt, completion, row):
    return None

class Callable:
    def __call__(self, prompt, completion, row):
        return 7

made = Callable()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("POINTS = {'easy': 1, 'hard': 10}\n")
    file = tmp_path / "my_reward.py"
    file.write_text(MODULE)
    return file


@contextmanager
def opened(file: Path, num_workers: int = 1, **settings: Any) -> Iterator[Functions]:
    entry = RewardFunction.model_validate({"file": file, **settings})
    with Functions([entry], num_workers) as functions:
        functions.check()
        yield functions


def answers(*texts: str) -> list[Answer]:
    return [Answer("1 + 1?", text, {"level": "hard", "prompt": "1 + 1?"}) for text in texts]


def results(functions: Functions, *texts: str) -> list[Result]:
    [found] = functions.results(answers(*texts))
    return found


def test_a_function_gets_prompt_answer_and_row_and_imports_from_its_folder(file: Path) -> None:
    with opened(file, 2) as functions:
        found = results(functions, *["x" * n for n in range(40)])
        assert functions.results([]) == [[]]
    assert [each.score for each in found] == [10.0 * n for n in range(40)]
    assert {each.metrics["asked"] for each in found} == {6.0}


def test_failures_are_told_with_the_line_and_cost_no_other_answer(file: Path) -> None:
    """Exceptions, SystemExit, a process that dies, a number that is none; the last is scored."""
    with opened(file) as functions:
        found = results(functions, "raise", "leave", "die", "nan", "ok")
    assert [each.score for each in found] == [None, None, None, None, 20.0]
    assert [each.failure for each in found] == [
        "my_reward.py:8: ValueError: no answer",
        "my_reward.py:10: SystemExit: 0",
        "its process died",
        "score is nan, where a finite number of at most 1e+09 is expected",
        None,
    ]


def test_one_that_sleeps_is_killed(file: Path) -> None:
    with opened(file, timeout_seconds=0.5) as functions:
        found = results(functions, "ok", "sleep", "ok")
    assert [each.score for each in found] == [20.0, None, 20.0]
    assert found[1].failure == "killed after 0.5 s (timeout_seconds)"


def test_a_batched_one_gets_lists_and_fails_as_a_whole(file: Path) -> None:
    """150 answers are calls of 64, 64 and 22; the second raises."""
    texts = ["x"] * 150
    texts[100] = "raise"
    with opened(file, name="many", batched=True) as functions:
        found = results(functions, *texts)
    assert [each.score for each in found] == [10.0] * 64 + [None] * 64 + [10.0] * 22
    assert found[64].failure == "my_reward.py:21: KeyError: 'many'"


def test_after_sixteen_failures_without_a_score_the_others_are_not_tried(file: Path) -> None:
    with opened(file, name="none") as functions:
        found = results(functions, *["x"] * 30)
    assert {each.score for each in found} == {None}
    why = "score is None, where a finite number of at most 1e+09 is expected"
    assert [each.failure for each in found] == [why] * 16 + [
        f"not tried, as 16 others failed: {why}"
    ] * 14


def test_an_object_that_can_be_called_is_a_function(file: Path) -> None:
    with opened(file, name="made") as functions:
        assert results(functions, "x")[0].score == 7.0


def test_rewards_are_at_work_at_the_same_time_and_keep_their_order(file: Path) -> None:
    with serving() as served:
        entries = [
            {"file": file},
            {"url": served.url, "name": "length"},
            {"file": file, "name": "made"},
        ]
        with Functions([RewardFunction.model_validate(each) for each in entries], 1) as functions:
            found = functions.results(answers("ab", "abc"))
    assert [[each.score for each in part] for part in found] == [[20, 30], [0.02, 0.03], [7, 7]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module\ndef score(p, c, r): ...", "my_reward.py:1: ModuleNotFoundError"),
        ("def score(p, c, r): ...\n1 / 0", "my_reward.py:2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\nscore = 1", "my_reward.py:2: SystemExit: 3"),
        ("score = 1", "my_reward.py: TypeError: score is int, not a function"),
        ("def score(p, c, r):\n return (", "my_reward.py:2: not valid Python"),
    ],
)
def test_a_file_that_cannot_be_imported_is_an_error_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught, opened(file):
        pass
    assert said in caught.value.message
    assert caught.value.message.startswith("reward score: ")


def test_a_process_that_dies_on_its_start_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text("import os\nos._exit(1)\n")
    with (
        pytest.raises(RunError, match="a process for reward score died on its start"),
        opened(file),
    ):
        pass


def test_a_function_sees_no_gpu_and_hashes_alike(tmp_path: Path) -> None:
    file = tmp_path / "env.py"
    file.write_text(
        "import os\n"
        "def score(p, c, r):\n"
        "    return {'score': hash('a') % 1000, 'gpus': len(os.environ['CUDA_VISIBLE_DEVICES'])}\n"
    )
    found = []
    for _ in range(2):
        with opened(file) as functions:
            found.append(results(functions, "x")[0])
    assert found[0] == found[1]
    assert found[0].metrics == {"gpus": 0.0}


def test_neither_a_sleeping_function_nor_what_it_started_outlives_a_killed_parent(
    file: Path, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    file.write_text(
        "import os, subprocess, time\n"
        "def score(prompt, completion, row):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}\\n')\n"
        "    time.sleep(600)\n"
    )
    program = textwrap.dedent(f"""
        from alignctl.config.rewards import RewardFunction
        from alignctl.rewards.functions import Functions
        from alignctl.rewards.results import Answer
        entry = RewardFunction.model_validate({{"file": {str(file)!r}, "timeout_seconds": 600.0}})
        with Functions([entry], 1) as functions:
            functions.results([Answer("", "", {{}})])
    """)
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        until = time.monotonic() + 60
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert time.monotonic() < until
            time.sleep(0.05)
        started = [int(pid) for pid in pids.read_text().split()]
        assert parent_of(started[0]) == parent.pid
        parent.kill()
    while any(is_alive(pid) for pid in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in started if is_alive(pid)]


def test_a_killed_function_takes_what_it_started_with_it(tmp_path: Path) -> None:
    file, pids = tmp_path / "my_reward.py", tmp_path / "pids"
    file.write_text(
        "import subprocess, time\n"
        "def score(prompt, completion, row):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(pids)!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    with opened(file, timeout_seconds=1.0) as functions:
        assert results(functions, "x")[0].score is None
    pid = int(pids.read_text())
    until = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_the_worker_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, alignctl.rewards.function_worker; print({'torch', 'numpy'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout == "set()\n"


def test_no_process_is_left_behind(file: Path) -> None:
    with opened(file, 2) as functions:
        results(functions, "x", "y")
        mine = [
            int(each.name)
            for each in Path("/proc").iterdir()
            if each.name.isdigit()
            and parent_of(int(each.name)) == os.getpid()
            and b"function_worker" in (each / "cmdline").read_bytes()
        ]
        assert len(mine) == 2
        os.kill(mine[0], signal.SIGSTOP)
    assert not [pid for pid in mine if is_alive(pid)]
