"""A hundred times `kill -9`, over all stages: each run goes on and is the one that nobody touched.

    python benchmarks/kills.py                          # all of them: an hour of two cores
    python benchmarks/kills.py --only convert --count 3 --seed 1

Every stage is run once untouched. Then, for each kill, the same command is started anew, and the
launcher, one of the processes below it, or all of them are killed: at any moment, or as something
is being saved. The same command then goes on, and what there is in the end has to be what the
untouched run has left, byte by byte but for times.

- **lost**: the same command did not come to its end with exit code 0;
- **differs**: it did, with something else in a file, a file more or one less;
- **falsely complete**: what the kill left said that it was finished, or had a checkpoint with a
  name, and was not whole;
- **orphans**: processes that were still there when the command had gone on to its end. Ranks whose
  launcher was killed save and leave, for which a busy machine takes longer than the 10 seconds
  after which they are counted as **slow**.

Exit code 1 if one of these is not 0, but for the slow ones.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.lib.kill_stages import Stage, stages  # noqa: E402
from benchmarks.lib.left_behind import content, differences, false_claims  # noqa: E402
from tests.commands import ALIGNCTL, descendants, is_alive  # noqa: E402

Victim = Literal["launcher", "process", "all"]

SLOW_SECONDS = 10
TIMEOUT_SECONDS = 600
BUSY_SECONDS = 120
BUSY = (
    "is in use by",
    "is being written by",
    "another process is writing",
    "has not ended yet",
)
"""What a command says that has to be started again later."""


@dataclass
class Found:
    """What the kills of a stage came to."""

    kills: int = 0
    identical: int = 0
    differs: int = 0
    lost: int = 0
    false: int = 0
    orphans: int = 0
    slow: int = 0
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Untouched:
    """A run that nobody touched."""

    seconds: float
    content: dict[str, str]


@dataclass(frozen=True)
class Kill:
    """What was killed and when, in words; the processes below the launcher; how and when it ended.

    Where one of the processes below was killed, the launcher ends by itself, be it well.
    """

    words: str
    below: list[int]
    code: int
    time: float

    def is_over(self, seconds: float) -> bool:
        """Tell whether it is so long ago."""
        return time.monotonic() > self.time + seconds


def main() -> None:
    """Kill, go on, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="stages, or how they begin")
    parser.add_argument("--count", type=int, help="kills of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty one, or that of an earlier call")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="kills-"))).resolve()
    results: dict[str, Found] = {}
    for stage in stages(folder / "inputs"):
        if stage.name.startswith(tuple(options.only)):
            count = options.count or stage.kills
            results[stage.name] = _kill_often(stage, folder, count, options.seed)
            print(_line(stage.name, results[stage.name]), file=sys.stderr, flush=True)
    print(f"{'':<22}kills  identical  differs  lost  falsely complete  orphans  slow")
    for name, found in results.items():
        print(_line(name, found))
    total = Found(*(sum(_numbers(each)[n] for each in results.values()) for n in range(7)))
    print(_line("all", total))
    if total.identical == total.kills and not (total.false or total.orphans):
        if options.folder is None:
            shutil.rmtree(folder)
        return
    for name, found in results.items():
        print("\n".join(f"{name}: {each}" for each in found.words), file=sys.stderr)
    print(f"kept in {folder}", file=sys.stderr)
    sys.exit(1)


def _numbers(found: Found) -> tuple[int, ...]:
    return (
        *(found.kills, found.identical, found.differs, found.lost),
        *(found.false, found.orphans, found.slow),
    )


def _line(name: str, found: Found) -> str:
    cells = zip(_numbers(found), (5, 11, 9, 6, 18, 9, 6), strict=True)
    return f"{name:<22}" + "".join(f"{number:>{width}}" for number, width in cells)


def _kill_often(stage: Stage, folder: Path, count: int, seed: int) -> Found:
    """Kill a stage so many times; a run that was over by then does not count, and is repeated."""
    chance, found = random.Random(f"{seed} {stage.name}"), Found()
    # The name of the output is in some files: it is the same in all runs.
    work = folder / "work"
    untouched = _run_untouched(stage, work)
    while found.kills < count:
        shutil.rmtree(work)
        work.mkdir()
        kill = _kill(stage, work, untouched.seconds, chance)
        if kill is None:
            continue
        found.kills += 1
        wrong = _go_on(stage, work, untouched, kill, found)
        print(f"{stage.name}: {kill.words}: {wrong or 'identical'}", file=sys.stderr, flush=True)
        if wrong:
            found.words.append(f"{kill.words}: {wrong}")
            kept = folder / f"{stage.name.replace(' ', '-')}-{found.kills}"
            shutil.copytree(work, kept, symlinks=True)
            shutil.copy(_log(work), kept.with_suffix(".log"))
    shutil.rmtree(work)
    return found


def _run_untouched(stage: Stage, work: Path) -> Untouched:
    work.mkdir(parents=True)
    started = time.monotonic()
    process = _start(stage, work)
    if process.wait(TIMEOUT_SECONDS):
        sys.exit(f"{stage.name}, which nobody touched: {_said(work)}")
    return Untouched(time.monotonic() - started, content(work))


def _start(stage: Stage, work: Path) -> "subprocess.Popen[bytes]":
    with _log(work).open("wb") as log:
        return subprocess.Popen(
            [ALIGNCTL, *map(str, stage.command(work))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _log(work: Path) -> Path:
    """Name the file of the latest command's output, beside its folder, so that nothing is added."""
    return work.with_name(f"{work.name}.log")


def _said(work: Path) -> str:
    return _log(work).read_text(errors="replace").strip()[-1500:]


def _kill(stage: Stage, work: Path, seconds: float, chance: random.Random) -> Kill | None:
    """Start the command, and kill; None when it was over by then.

    A launcher whose process was killed is waited for, since it ends by itself.
    """
    victim: Victim = chance.choice(get_args(Victim))
    save = chance.randint(1, 3) if chance.random() < 0.5 else 0
    wait = chance.uniform(0, 0.1) if save else chance.uniform(0.02, 1.0) * seconds
    pick = chance.random()
    process = _start(stage, work)
    if save:
        _wait_for_save(stage, work, process, save)
    deadline = time.monotonic() + wait
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    below = descendants(process.pid)
    if process.poll() is not None:
        return None
    if victim == "process" and below:
        victims = [below[int(pick * len(below))]]
    else:
        victims = [process.pid] if victim == "launcher" else [*reversed(below), process.pid]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(TIMEOUT_SECONDS)
    when = f"{wait:.3f} s after save {save} began" if save else f"after {wait:.1f} s"
    return Kill(f"{victim} {when}", below, process.returncode, time.monotonic())


def _wait_for_save(
    stage: Stage, work: Path, process: "subprocess.Popen[bytes]", number: int
) -> None:
    """Wait until so many things have been seen that are there only while something is saved."""
    seen: set[Path] = set()
    while len(seen) < number and process.poll() is None:
        with suppress(FileNotFoundError):
            seen |= {path for pattern in stage.saves for path in work.glob(pattern)}
        time.sleep(0.002)


def _go_on(stage: Stage, work: Path, untouched: Untouched, kill: Kill, found: Found) -> str:
    """Check what a kill has left, go on and compare; return what is wrong, if anything is."""
    wrong = false_claims(work, stage.finished, untouched.content)
    found.false += bool(wrong)
    code = _end_of(_start(stage, work) if kill.code else None, kill, found)
    while code and any(words in _said(work) for words in BUSY) and not kill.is_over(BUSY_SECONDS):
        time.sleep(2)
        code = _start(stage, work).wait(TIMEOUT_SECONDS)
    if orphans := [_name(pid) for pid in kill.below if is_alive(pid)]:
        found.orphans += 1
        wrong.append(f"{len(orphans)} orphans: {orphans}")
    if code:
        found.lost += 1
        wrong.append(f"exit {code}: {_said(work)}")
    elif differing := differences(content(work), untouched.content):
        found.differs += 1
        wrong.append(f"differs: {', '.join(differing)}")
    else:
        found.identical += 1
    return "; ".join(wrong)


def _end_of(process: "subprocess.Popen[bytes] | None", kill: Kill, found: Found) -> int:
    """Wait for the command that goes on, if there is one; return its exit code, note slow ranks."""
    while not kill.is_over(SLOW_SECONDS):
        time.sleep(0.05)
    found.slow += any(is_alive(pid) for pid in kill.below)
    return process.wait(TIMEOUT_SECONDS) if process else 0


def _name(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return "gone"


if __name__ == "__main__":
    main()
