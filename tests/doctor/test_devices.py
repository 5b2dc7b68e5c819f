"""What the report says of GPUs, and what becomes of one that fails or hangs."""

import sys
from pathlib import Path
from typing import Any

import pytest

from alignctl.doctor import devices, examination
from alignctl.doctor.nvidia_smi import Driver, Gpu
from tests.doctor.test_nvidia_smi import HERE, put_on_path


def torch_report(**changes: Any) -> dict[str, Any]:
    """What torch says of itself on a machine with two GPUs."""
    report = {
        "version": "2.13.0+cu130",
        "cuda": "13.0",
        "gpus": [["NVIDIA H200", 150754820096]] * 2,
        "why_not": "",
        "gloo": True,
        "nccl": True,
        "nccl_version": "2.29.7",
    }
    return report | changes


def driver(version: str = "580.119.02", *, has_mig: bool = False, **fields: Any) -> Driver:
    gpus = tuple(Gpu(n, "NVIDIA H200", version, 143771, has_mig) for n in range(2))
    return Driver(gpus, **{"cuda": (13, 0), "links": {(0, 1): "NV18"}} | fields)


def test_the_report_has_driver_links_cuda_and_nccl() -> None:
    assert devices.describe(driver(), torch_report()) == [
        "gpu: 2 x NVIDIA H200 (140.4 GiB)",
        "driver: 580.119.02, CUDA up to 13.0",
        "links: NV18 between all",
        "torch: 2.13.0+cu130, CUDA 13.0, gloo and nccl 2.29.7",
    ]
    assert devices.find_problems(driver(), torch_report()) == []


def test_mig_instances_are_counted() -> None:
    found = driver(has_mig=True, links={}, instances=("1g.18gb", "1g.18gb", "3g.71gb"))
    (line,) = [x for x in devices.describe(found, torch_report()) if x.startswith("MIG")]
    assert line == "MIG: 2 x 1g.18gb, 1 x 3g.71gb; a process uses one, and NCCL joins none"


def test_a_machine_without_gpus_lacks_nothing() -> None:
    report = torch_report(gpus=[], cuda=None, nccl=False, nccl_version="", version="2.13.0+cpu")
    assert devices.describe(None, report) == ["gpu: none", "torch: 2.13.0+cpu, CUDA none, gloo"]
    assert devices.find_problems(None, report) == []


@pytest.mark.parametrize(
    ("found", "report", "reason"),
    [
        (
            driver("535.216.01", cuda=(12, 2)),
            {},
            "driver 535.216.01 runs CUDA up to 12.2, torch was built for 13.0; install driver 580 "
            "or later, or a torch for CUDA 12",
        ),
        (
            driver("470.182.03", cuda=(11, 4)),
            {"cuda": "12.8"},
            "install driver 525 or later, or a torch for CUDA 11",
        ),
        (driver(), {"cuda": None, "version": "2.13.0+cpu"}, "2.13.0+cpu is built for the CPU"),
        (driver(has_mig=True), {}, "MIG is on and has no instance; `nvidia-smi mig -cgi 0 -C`"),
        (driver(), {"why_not": "CUDA unknown error"}, "torch sees no GPU: CUDA unknown error"),
    ],
    ids=["driver too old", "much too old", "cpu build", "mig", "unknown"],
)
def test_why_torch_sees_none_of_the_drivers_gpus(
    found: Driver, report: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (problem,) = devices.find_problems(found, torch_report(gpus=[], **report))
    assert problem.startswith("the driver has 2 x NVIDIA H200 and torch sees no GPU: ")
    assert reason in problem


@pytest.mark.parametrize("hidden", ["", "none"])
def test_gpus_that_are_hidden_are_named(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (problem,) = devices.find_problems(driver(), torch_report(gpus=[]))
    assert f"CUDA_VISIBLE_DEVICES={hidden!r} hides them" in problem


def test_a_driver_too_old_makes_the_machine_not_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole report, with the torch that is here: built for the CPU."""
    script = f'case "$1" in --query*) cat {HERE}/l40.gpus;; topo) cat {HERE}/l40.topology;; '
    put_on_path(tmp_path, f'{script} "") cat {HERE}/535.table;; esac', monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    text, is_usable = examination.examine()
    assert not is_usable
    assert "\ndriver: 570.144, CUDA up to 12.2\nlinks: SYS between all\n" in text
    assert "  the driver has 2 x NVIDIA L40 and torch sees no GPU: torch 2.13" in text


def test_what_fails_and_what_hangs_is_named_with_its_step() -> None:
    """One that waits for another, which failed, is not at fault."""
    begin = "import time, sys; print('start', 'attention', flush=True);"
    cuda = "torch.AcceleratorError: CUDA error: no kernel image is available\nCompile with ..."
    trials = {
        "GPU 0": [sys.executable, "-c", f"{begin} sys.exit({cuda!r})"],
        "GPU 1": [sys.executable, "-c", f"{begin} print('all-reduce', flush=True); time.sleep(60)"],
        "GPU 2": [sys.executable, "-c", f"{begin} time.sleep(60)"],
        "GPU 3": [sys.executable, "-c", f"{begin} print('done')"],
    }
    failed, hung = devices.run_trials(trials, 3)
    assert failed.startswith(
        "GPU 0 fails at attention: torch.AcceleratorError: CUDA error: no kernel"
    )
    assert hung.startswith("GPU 2 hangs at attention (3 s have passed); ")


def test_an_all_reduce_that_hangs_on_all_is_named_on_all() -> None:
    begin = "import time; print('all-reduce', flush=True); time.sleep(60)"
    trials = {f"GPU {n}": [sys.executable, "-c", begin] for n in range(2)}
    problems = devices.run_trials(trials, 2)
    assert [each.split(" (")[0] for each in problems] == [
        "GPU 0 hangs at all-reduce",
        "GPU 1 hangs at all-reduce",
    ]
    assert "NCCL_DEBUG=INFO" in problems[0]


@pytest.mark.ci
def test_two_devices_are_tried() -> None:
    """The same program as for GPUs, on the CPU."""
    assert devices.try_gpus(["one", "other"], device="cpu") == []


@pytest.mark.ci
def test_a_device_that_is_not_there_is_named() -> None:
    (problem,) = devices.try_gpus(["NVIDIA H200"], device="cuda", seconds=60)
    assert problem.startswith("GPU 0 (NVIDIA H200) fails at start: ")
    assert "hold" in problem
