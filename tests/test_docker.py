"""The images' recipes agree with the locks: no image is built here."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NGC = "FROM nvcr.io/nvidia/pytorch:26.07-py3"
"""That image has torch 2.13.0a0+9186a08b2c.nv26.07, CUDA 13.3.1 and Python 3.12."""


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def recipe(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def left_to_the_image() -> "re.Pattern[str]":
    (pattern,) = re.findall(r"grep -v -E '([^']+)'", recipe("Dockerfile.gpu"))
    return re.compile(pattern)


def test_the_cpu_image_has_the_python_of_its_lock() -> None:
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", recipe("Dockerfile"), re.MULTILINE)
    assert "for Python 3.11." in (ROOT / "requirements/cpu.lock").read_text(encoding="utf-8")


def test_the_gpu_image_has_the_torch_of_the_lock() -> None:
    text = recipe("Dockerfile.gpu")
    minor = pins("gpu.lock")["torch"].rpartition(".")[0]
    assert NGC in text.splitlines()
    assert f"startswith('{minor}.')" in text
    assert pins("cpu.lock")["torch"] == pins("gpu.lock")["torch"]


def test_what_is_left_to_the_gpu_image_is_of_its_cuda_or_compiled_against_its_torch() -> None:
    """Each name of the pattern is in the lock; what vLLM needs besides is installed."""
    left = {
        name
        for name, version in pins("gpu.lock").items()
        if left_to_the_image().match(f"{name}=={version}")
    }
    assert {"torch", "triton", "nvidia-cublas", "nvidia-nccl-cu13", "nvidia-cuda-runtime"} <= left
    assert len(left) == 25
    needed = {"vllm", "nvidia-cutlass-dsl", "nvidia-cudnn-frontend", "nvidia-ml-py", "deepspeed"}
    assert not needed & left


def test_an_image_gets_what_the_recipes_copy_and_nothing_else() -> None:
    """No run, model, key or lock of git: .dockerignore names what may go in, and all of it is."""
    first, *allowed = [
        line for line in recipe(".dockerignore").splitlines() if line and line[0] != "#"
    ]
    assert first == "*"
    named = [line[1:] for line in allowed if line.startswith("!")]
    assert all((ROOT / name).exists() for name in named)
    for file in ("Dockerfile", "Dockerfile.gpu"):
        for source in re.findall(r"^COPY (?:--chown=\d+ )?(\S+) ", recipe(file), re.MULTILINE):
            assert source == "." or source.split("/")[0] in named


def test_transformer_engine_is_of_one_version_and_of_the_locks_cuda() -> None:
    versions = {v for name, v in pins("te.lock").items() if name.startswith("transformer-engine")}
    assert len(versions) == 1
    assert "transformer-engine-cu13" in pins("te.lock")
    assert "nvidia-nccl-cu13" in pins("gpu.lock")
