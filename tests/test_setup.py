"""`make setup` where the registry's torch is built for CUDA: real make and pip, small packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci

ROOT = Path(__file__).parents[1]
VERSION = "2.13.0"
FOR_CUDA = "raise ImportError('libcudnn.so.9: cannot open shared object file')\n"
FOR_CPU = "__version__ = 'of the CPU'\n"
PROJECT = """
[project]
name = "alignctl"
version = "0"

[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import shutil

def build_editable(folder, settings=None, metadata=None):
    return shutil.copy("alignctl-0-py3-none-any.whl", folder).rpartition("/")[2]
"""


def write_wheel(folder: Path, name: str, version: str, code: str) -> None:
    """A package of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}/__init__.py": code,
        f"{info}/METADATA": headers,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def write_index(folder: Path, version: str, code: str) -> str:
    """A package index with torch alone, as files; returns its address."""
    write_wheel(folder / "torch", "torch", version, code)
    name = f"torch-{version}-py3-none-any.whl"
    (folder / "torch/index.html").write_text(f'<a href="{name.replace("+", "%2B")}">{name}</a>')
    return folder.as_uri()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile with a lock of torch alone, and a project without code."""
    folder = tmp_path / "checkout"
    for name in ("src", "stages", "requirements"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements/cpu.lock").write_text(f"torch=={VERSION}\n")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    write_wheel(folder, "alignctl", "0", "")
    return folder


def make_setup(checkout: Path, registry: str, torch_cpu: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": registry}
    words = ["make", "setup", f"PYTHON={sys.executable}", f"TORCH_CPU={torch_cpu}"]
    return subprocess.run(
        words, cwd=checkout, env=environ, capture_output=True, text=True, check=False
    )


def torch_of(checkout: Path) -> str:
    """What the installed torch says of itself."""
    python = str(checkout / ".venv/bin/python")
    words = [python, "-c", "import torch; print(torch.__version__)"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return str(done.stdout).strip()


def test_a_torch_that_cannot_be_imported_is_replaced_by_the_cpus(
    checkout: Path, tmp_path: Path
) -> None:
    """The same version: of the CPU's index it has a local part, 2.13.0+cpu."""
    registry = write_index(tmp_path / "registry", VERSION, FOR_CUDA)
    torch_cpu = write_index(tmp_path / "cpu", f"{VERSION}+cpu", FOR_CPU)
    done = make_setup(checkout, registry, torch_cpu)
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch_of(checkout) == "of the CPU"
    said = f"this torch needs the libraries of CUDA: the same version from {torch_cpu} instead"
    assert said in done.stderr
    assert (checkout / ".venv/.ready").exists()
    assert "pip" not in make_setup(checkout, registry, torch_cpu).stdout


def test_a_torch_that_can_be_imported_stays(checkout: Path, tmp_path: Path) -> None:
    registry = write_index(tmp_path / "registry", VERSION, FOR_CPU)
    done = make_setup(checkout, registry, (tmp_path / "no index").as_uri())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDA" not in done.stderr


def test_where_no_index_of_the_cpus_is_reached_another_may_be_named(
    checkout: Path, tmp_path: Path
) -> None:
    registry = write_index(tmp_path / "registry", VERSION, FOR_CUDA)
    nowhere = (tmp_path / "nowhere").as_uri()
    done = make_setup(checkout, registry, nowhere)
    assert done.returncode != 0
    assert f"\nno torch from {nowhere}; another index: make setup TORCH_CPU=URL\n" in done.stderr
    assert not (checkout / ".venv/.ready").exists()


def test_without_any_torch_that_works_setup_fails(checkout: Path, tmp_path: Path) -> None:
    """It does not call itself ready, so the next `make setup` tries again."""
    registry = write_index(tmp_path / "registry", VERSION, FOR_CUDA)
    done = make_setup(checkout, registry, write_index(tmp_path / "cpu", VERSION, FOR_CUDA))
    assert done.returncode != 0
    assert "libcudnn.so.9" in done.stderr
    assert not (checkout / ".venv/.ready").exists()
