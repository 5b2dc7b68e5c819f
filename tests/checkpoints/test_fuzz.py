"""Damaged folders of every format: each is refused, or converted as if it were whole.

    python -m tests.checkpoints.test_fuzz mcore 137      what one damage does

Never another exception, never another model. Only where a format has no checksum for what was
damaged (weights in foreign safetensors, the index of a foreign distributed checkpoint, which of two
like files is whose) the result may be another: what the format's own library reads.
"""

import json
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from alignctl.checkpoints.find import find
from alignctl.config.convert import ConvertOptions
from alignctl.errors import UserError
from alignctl.models.families import differences
from alignctl.stages import convert
from tests.checkpoints.corruptions import corrupt
from tests.checkpoints.folders import is_identical, made
from tests.checkpoints.samples import FORMATS, MODEL, full_tensors, write

ROOT = Path(__file__).parents[2]
NUM_SEEDS, NUM_FAST = 200, 30


def outcome(name: str, sample: Path, seed: int, room: Path) -> tuple[str, str]:
    """Damages a copy of a sample and converts it.

    Returns:
        `refused`, `harmless`, `as its library` or `config` (an edited config.json of others, which
        may mean another model), and what was done and said; anything else is a defect.
    """
    shutil.rmtree(room, ignore_errors=True)
    load = Path(shutil.copytree(sample, room / "in"))
    what = corrupt(load, f"{name} {seed}")
    save = room / "out" / "model"
    save.parent.mkdir()
    options = ConvertOptions(load=load, save=save, verify="none")
    try:
        convert.run(FORMATS[name].direction, options)
    except UserError as error:
        is_clean = not list(save.parent.iterdir())
        return "refused" if is_clean else "LEFT SOMETHING BEHIND", f"{what}: {error.message}"
    except Exception:
        return "EXCEPTION", f"{what}: {traceback.format_exc()}"
    return _judged(name, load, save, what), what


def _judged(name: str, load: Path, save: Path, what: str) -> str:
    found = find(save)
    if "config.json" in what and not FORMATS[name].has_checked_config:
        return "config"
    if found.head != "lm" or differences(found.model, MODEL):
        return "ANOTHER ARCHITECTURE"
    ours = made(found.tensors)
    if is_identical(ours, full_tensors()):
        return "harmless"
    read = FORMATS[name].read
    return "as its library" if read and is_identical(ours, read(load)) else "ANOTHER MODEL"


ALLOWED = {"refused", "harmless", "as its library", "config"}


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_sample_holds_the_model(name: str, tmp_path: Path) -> None:
    """And the reading of its library, to which others are compared, is right."""
    sample, save = write(name, tmp_path / "sample"), tmp_path / "out"
    convert.run(FORMATS[name].direction, ConvertOptions(load=sample, save=save, verify="none"))
    assert differences(find(save).model, MODEL) == []
    assert is_identical(made(find(save).tensors), full_tensors())
    read = FORMATS[name].read
    assert read is None or is_identical(dict(read(sample)), full_tensors())


@pytest.mark.parametrize("name", FORMATS)
def test_some_corruptions_are_harmless_or_refused(name: str, tmp_path: Path) -> None:
    sample = write(name, tmp_path / "sample")
    for seed in range(NUM_FAST):
        kind, text = outcome(name, sample, seed, tmp_path / "room")
        assert kind in ALLOWED, f"seed {seed}: {kind}: {text}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_two_hundred_corruptions_are_harmless_or_refused(name: str) -> None:
    """In a process of its own, whose end would be told from a defect that a test can catch."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.test_fuzz", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0, f"after seed {len(rows) - 1}: {done.stderr[-4000:]}"
    assert len(rows) == NUM_SEEDS
    assert [row for row in rows if row[1] not in ALLOWED] == []
    counts = Counter(kind for _, kind, _ in rows)
    print(name, dict(counts))
    assert counts["refused"] > NUM_SEEDS / 2


def main(name: str, *seeds: str) -> None:
    """Prints what becomes of every seed: `[seed, outcome, what was done and said]`."""
    with TemporaryDirectory() as folder:
        sample = write(name, Path(folder) / "sample")
        for seed in map(int, seeds or range(NUM_SEEDS)):
            row = [seed, *outcome(name, sample, seed, Path(folder) / "room")]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
