import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["stages", "presets"])
def test_the_folders_at_the_top_are_linked_into_the_package(name: str) -> None:
    """A checkout without symbolic links holds text files here, and its wheel has no stages."""
    link = ROOT / "src" / "alignctl" / name
    assert link.is_symlink()
    assert link.readlink() == Path(f"../../{name}")


def test_stages_cannot_be_imported_twice_under_two_names() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import stages"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "import alignctl.stages instead of stages" in done.stderr


def test_a_wheel_made_from_the_source_archive_holds_stages_and_presets(tmp_path: Path) -> None:
    """Built as a release is, archive first, with the setuptools that is installed."""
    source = tmp_path / "source"
    tree = ("pyproject.toml", "README.md", "LICENSE", "src", "stages", "presets")
    source.mkdir()
    for name in tree:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    [archive], [wheel] = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(archive) as tar, zipfile.ZipFile(wheel) as zipped:
        archived = {name.partition("/")[2] for name in tar.getnames()}
        wheeled = set(zipped.namelist())
    stages = {f"alignctl/stages/{path.name}" for path in (ROOT / "stages").glob("*.py")}
    files = [path.relative_to(ROOT) for path in (ROOT / "presets").rglob("*.yaml")]
    presets = {f"alignctl/{path.as_posix()}" for path in files}
    assert len(presets) == 33
    assert stages | presets | {"alignctl/py.typed"} <= wheeled
    assert {f"src/{name}" for name in stages | presets} <= archived
    assert not [name for name in wheeled if name.startswith(("stages/", "presets/", "tests/"))]


def test_the_lock_names_versions_and_no_places() -> None:
    lines = (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    assert not [pin for pin in pins if pin.startswith("alignctl")]
