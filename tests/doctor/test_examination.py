import re
from pathlib import Path

import pytest

from alignctl.doctor import examination as doctor
from alignctl.rollouts.library import TESTED

LOCK = Path(__file__).parents[2] / "requirements" / "cpu.lock"


def test_the_tested_versions_are_those_of_the_lock() -> None:
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", LOCK.read_text(), re.MULTILINE))
    locked = {name.lower(): version for name, version in lock.items()}
    for library in doctor.LIBRARIES:
        if library.tested:
            assert locked[(library.on_cpu or library.name).lower()] == library.tested


def test_the_sampler_is_checked_for_the_version_that_is_reported() -> None:
    tested = {each.name: each.tested for each in doctor.LIBRARIES}["vllm"]
    assert tested is not None
    assert tested.rpartition(".")[0] == TESTED


def test_the_report_says_what_is_here() -> None:
    text, is_usable = doctor.examine()
    assert is_usable
    assert text.endswith("\nusable")
    assert "megatron-core" in text
    assert re.search(r"^vllm .* the rollout of on-policy stages$", text, re.MULTILINE)
    assert re.search(r"^latex2sympy2_extended .* rewards by rule$", text, re.MULTILINE)
    assert re.search(r"memory: [\d.]+ GiB available of [\d.]+ GiB", text)


def test_what_is_missing_comes_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nowhere = doctor.Library("no-such-library-of-ours", "1.2.3", "this test")
    monkeypatch.setattr(doctor, "LIBRARIES", (nowhere,))
    text, is_usable = doctor.examine()
    assert not is_usable
    assert "(this test): pip install no-such-library-of-ours==1.2.3" in text


def test_a_library_that_is_there_and_lacks_what_is_asked_of_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Megatron-Core of some other version: its first module is here, the others are not."""
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    megatron = {"megatron": doctor._TRIALS["megatron"]}
    monkeypatch.setattr(doctor, "_TRIALS", megatron)
    text, is_usable = doctor.examine()
    assert not is_usable
    assert "megatron-core is installed and does not work (every training stage): " in text
    assert "ModuleNotFoundError: No module named 'megatron.core" in text
