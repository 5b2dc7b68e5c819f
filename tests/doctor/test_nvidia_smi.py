"""Outputs of nvidia-smi as machines print them; the files beside this are such, cut to their facts.

A6000 and L40S: three and four GPUs in one machine, over NVLink bridges and PCIe switches. L40: no
MIG. mig: an A100 cut in parts. 535, 580, 610: heads of the table, the last as of drivers that tell
the kernel's version from CUDA's.
"""

import os
import stat
from itertools import combinations
from pathlib import Path

import pytest

from alignctl.doctor import nvidia_smi
from alignctl.doctor.nvidia_smi import Gpu

HERE = Path(__file__).parent / "nvidia_smi"


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def put_on_path(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that is a shell script: no machine that tests run on has the real one."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_gpus_have_a_driver_and_memory_and_may_know_no_mig() -> None:
    expected = [Gpu(n, "NVIDIA L40", "570.144", 46068, has_mig=False) for n in (0, 1)]
    assert list(nvidia_smi.parse_gpus(read("l40.gpus"))) == expected


def test_a_gpu_that_shares_the_machines_memory_has_no_size() -> None:
    (gpu,) = nvidia_smi.parse_gpus("0, NVIDIA GB10, 580.173.02, [N/A], [N/A]\n")
    assert gpu.mebibytes is None


def test_a_gpu_in_parts_has_mig() -> None:
    (gpu,) = nvidia_smi.parse_gpus("0, NVIDIA A100-SXM4-80GB, 535.216.01, 81920, Enabled\n")
    assert gpu.has_mig
    assert nvidia_smi.parse_instances(read("mig.list")) == ("1g.10gb", "1g.10gb")
    assert nvidia_smi.parse_instances("GPU 0: NVIDIA L40 (UUID: GPU-7fdaf0a5)\n") == ()


@pytest.mark.parametrize(
    ("table", "cuda"), [("535.table", (12, 2)), ("580.table", (13, 0)), ("610.table", (13, 3))]
)
def test_the_drivers_cuda_is_in_the_head_of_the_table(table: str, cuda: tuple[int, int]) -> None:
    assert nvidia_smi.parse_cuda(read(table)) == cuda


def test_a_table_without_cuda_has_none() -> None:
    assert nvidia_smi.parse_cuda("| NVIDIA-SMI 390.157   Driver Version: 390.157 |") is None


def test_links_of_one_kind() -> None:
    links = nvidia_smi.parse_links(read("h100.topology"))
    assert links == dict.fromkeys(combinations(range(8), 2), "NV18")
    assert nvidia_smi.describe_links(links) == "NV18 between all"


@pytest.mark.parametrize(
    ("machine", "described"),
    [
        ("l40", "SYS between all"),
        ("a6000", "NV4 between 0+1; NODE between 0+2, 1+2"),
        ("l40s", "PIX between 0+1, 2+3; NODE between 0+2, 0+3, 1+2, 1+3"),
    ],
)
def test_links_of_several_kinds_underlined_and_with_network_cards(
    machine: str, described: str
) -> None:
    links = nvidia_smi.parse_links(read(f"{machine}.topology"))
    assert nvidia_smi.describe_links(links) == described


def test_many_pairs_of_no_group_are_counted() -> None:
    """Two islands of four: 2 x 6 pairs within, 16 between."""
    links = {(a, b): "NV12" if a // 4 == b // 4 else "SYS" for a, b in combinations(range(8), 2)}
    assert nvidia_smi.describe_links(links) == (
        "NV12 between 0+1+2+3, 4+5+6+7; SYS between 16 other pairs"
    )


def test_a_topology_that_the_driver_does_not_know_is_empty() -> None:
    assert nvidia_smi.parse_links("Topology is not supported on this platform\n") == {}


def test_without_nvidia_smi_there_is_no_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi.ask_driver() is None


def test_all_that_it_prints_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""case "$1" in
      --query-gpu=*) cat {HERE}/l40.gpus ;;
      -L) cat {HERE}/mig.list ;;
      topo) cat {HERE}/l40.topology ;;
      "") cat {HERE}/580.table ;;
    esac"""
    put_on_path(tmp_path, script, monkeypatch)
    driver = nvidia_smi.ask_driver()
    assert driver is not None
    assert [gpu.name for gpu in driver.gpus] == ["NVIDIA L40", "NVIDIA L40"]
    assert driver.cuda == (13, 0)
    assert driver.links == {(0, 1): "SYS"}
    assert driver.instances == ("1g.10gb", "1g.10gb")
    assert driver.problems == ()


@pytest.mark.parametrize(
    ("said", "code", "hint"),
    [
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
            "Make sure that the latest NVIDIA driver is installed and running.",
            9,
            "the driver is not loaded",
        ),
        (
            "Failed to initialize NVML: Driver/library version mismatch\n"
            "NVML library version: 550.144",
            18,
            "restart the machine",
        ),
        ("No devices were found", 6, "no GPU answers"),
        ("Failed to initialize NVML: Unknown Error", 255, "ended with code 255: Failed to init"),
    ],
    ids=["not loaded", "mismatch", "no devices", "unknown"],
)
def test_a_failure_comes_with_what_mends_it(
    said: str, code: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "said").write_text(said)
    put_on_path(tmp_path, f"cat {tmp_path}/said; exit {code}", monkeypatch)
    driver = nvidia_smi.ask_driver()
    assert driver is not None
    (problem,) = driver.problems
    assert hint in problem


def test_a_driver_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_smi, "_SECONDS", 0.1)
    put_on_path(tmp_path, "exec sleep 60", monkeypatch)
    driver = nvidia_smi.ask_driver()
    assert driver is not None
    assert driver.problems[0].startswith("nvidia-smi does not end within 0.1 s: the driver hangs")
