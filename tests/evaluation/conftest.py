"""Tiny models with heads that vLLM runs on a CPU, and what they answer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.rollouts.jobs import make_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, each with its tokenizer."""
    folder = make_models(tmp_path_factory.mktemp("models"))
    for model in folder.iterdir():
        tiny.write_tokenizer(model)
    _make_talkative(folder / "bloom")
    return folder


def _make_talkative(bloom: Path) -> None:
    """Has layers count for more than biases, which would always choose the same token."""
    import torch
    from transformers import BloomForCausalLM

    model = BloomForCausalLM.from_pretrained(bloom)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.mul_(0.2)
            elif name.endswith(("dense.weight", "dense_4h_to_h.weight")):
                parameter.mul_(12)
    model.save_pretrained(bloom)


@pytest.fixture(scope="session")
def found(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.evaluation.asked` finds, in a process of its own."""
    results = tmp_path_factory.mktemp("asked") / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.asked", str(models), str(results)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"asking failed:\n{done.stderr[-6000:]}")
    content: dict[str, Any] = json.loads(results.read_text())
    return content
