"""Conversions beside a plain copy of the same bytes: seconds, GB/s, peak memory.

    python benchmarks/convert.py                      # 1.1B parameters, about two minutes
    python benchmarks/convert.py --size 7b            # 13.5 GB of weights, several such folders

Random bfloat16 weights of Llama's shapes. Each direction is the real command in a process of its
own, start of Python included, and ends with a sync; right before it the same folder is
copied by `cp -r` and synced. The conversion is timed without verification, which then runs once
more as `alignctl verify`'s own comparison and as the default `--verify full`. Nothing is asserted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.lib.random_llama import SHAPES, write  # noqa: E402

ALIGNCTL = Path(sys.executable).parent / "alignctl"


@dataclass(frozen=True)
class Timing:
    """What one process took.

    Attributes:
        wall: Seconds until it had ended and its files were synced.
        cpu: Processor seconds, its own and the system's for it.
        peak: High-water mark of its resident memory, in bytes.
    """

    wall: float
    cpu: float
    peak: int


def timed(*command: object) -> Timing:
    """Run a command to its end and sync."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{said}")
    return Timing(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    """Make the model, convert it there and back in both formats, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=[*SHAPES], default="1b", help="parameters of the model")
    parser.add_argument("--repeats", type=int, default=1, help="turns; the fastest one is shown")
    parser.add_argument("--tp", type=int, default=2, help="layout of the legacy checkpoints")
    parser.add_argument("--pp", type=int, default=1, help="layout of the legacy checkpoints")
    parser.add_argument("--no-verify", action="store_true", help="leave the verification out")
    parser.add_argument("--folder", type=Path, help="where to work; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-", dir=options.folder) as name:
        folder = Path(name)
        size = write(folder / "hf", options.size)
        print(f"{options.size}: {size / 1e9:.2f} GB in bfloat16", flush=True)
        legacy = ("--format", "legacy", "--tp", options.tp, "--pp", options.pp)
        directions = [
            ("hf -> mcore", "convert-hf2mg", "hf", "mcore", ()),
            ("mcore -> hf", "convert-mg2hf", "mcore", "hf1", ()),
            (f"hf -> legacy TP{options.tp}", "convert-hf2mg", "hf", "legacy", legacy),
            (f"legacy TP{options.tp} -> hf", "convert-mg2hf", "legacy", "hf2", ()),
        ]
        print(
            f"{'':18}{'cp -r + sync':>14}{'convert':>10}{'ratio':>8}{'GB/s':>8}{'CPU s':>8}"
            f"{'peak GiB':>10}{'with verification':>20}{'peak GiB':>10}"
        )
        for label, command, source, target, flags in directions:
            measure(folder, label, size, options, command, source, target, flags)
            if source == "mcore":  # there is not room for all of them everywhere
                shutil.rmtree(folder / source)
                shutil.rmtree(folder / target)
        identical = subprocess.run(
            [ALIGNCTL, "verify", folder / "hf", folder / "hf2"], capture_output=True, text=True
        )
        print(f"the first and the last folder: {identical.stdout.strip()}")


def measure(
    folder: Path,
    label: str,
    size: int,
    options: argparse.Namespace,
    command: str,
    source: str,
    target: str,
    flags: tuple[object, ...],
) -> None:
    """Measure one direction: copy and conversion in turns, then conversion with verification."""
    copies, conversions = [], []
    for _ in range(options.repeats):
        copies.append(timed("cp", "-r", folder / source, folder / "copy"))
        shutil.rmtree(folder / "copy")
        shutil.rmtree(folder / target, ignore_errors=True)
        arguments = (command, "--load", folder / source, "--save", folder / target, *flags)
        conversions.append(timed(ALIGNCTL, *arguments, "--verify", "none"))
    copy = min(copies, key=lambda each: each.wall)
    best = min(conversions, key=lambda each: each.wall)
    line = (
        f"{label:18}{copy.wall:12.1f} s{best.wall:8.1f} s{best.wall / copy.wall:8.2f}"
        f"{size / 1e9 / best.wall:8.2f}{best.cpu:8.1f}"
        f"{max(each.peak for each in conversions) / 2**30:10.2f}"
    )
    if not options.no_verify:
        shutil.rmtree(folder / target)
        whole = timed(ALIGNCTL, *arguments)
        line += f"{whole.wall:18.1f} s{whole.peak / 2**30:10.2f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
