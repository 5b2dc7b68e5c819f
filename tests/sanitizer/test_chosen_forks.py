"""Ways on a GPU that the CPU takes as well, once the test says that there is one."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignctl.config.kernels import Kernels
from alignctl.engines import device
from alignctl.errors import UserError
from alignctl.evaluation.tp_workers import Ranks
from alignctl.models.attention import choose_attention
from alignctl.reporting.phases import Phases
from alignctl.rollouts import vllm
from alignctl.stages.shared import training
from tests import tiny

ANSWERS = {
    "is_available": True,
    "device_count": 1,
    "max_memory_allocated": 3 * 2**30,
    "reset_peak_memory_stats": None,
    "synchronize": None,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch is asked of a GPU, which it answers as if there were one."""
    found: list[str] = []

    def answer(name: str) -> Any:
        found.append(name)
        return ANSWERS[name]

    for name in ANSWERS:
        monkeypatch.setattr(torch.cuda, name, lambda name=name: answer(name))
    monkeypatch.setattr(device, "IS_GPU", True)
    return found


def test_a_phase_ends_when_the_gpu_is_done(asked: list[str]) -> None:
    phases = Phases()
    with phases("rollout"):
        asked.append("work")
    assert asked == [
        "is_available",
        "reset_peak_memory_stats",
        "work",
        "synchronize",
        "max_memory_allocated",
    ]
    assert phases.row["memory_gib_rollout"] == 3


def test_the_peak_of_memory_is_the_gpus(asked: list[str]) -> None:
    assert training._peak_memory() == 3 * 2**30


def test_attention_is_one_kernel(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Transformer Engine, where there is one."""
    model = tiny.architecture()
    assert choose_attention(model, Kernels()) == "flex"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace())
    assert choose_attention(model, Kernels()) == "transformer_engine"


def test_more_ranks_than_gpus_are_refused(asked: list[str]) -> None:
    with pytest.raises(UserError, match="tp 2: there are 1 GPUs here"), Ranks(2):
        pass


def test_the_sampler_leaves_the_gpus_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"gpu": torch.ones(2)}
    monkeypatch.setattr(vllm, "IS_GPU", True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state["gpu"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new: state.update(gpu=new))
    with vllm._apart():
        state["gpu"] = torch.zeros(2)
    assert torch.equal(state["gpu"], torch.ones(2))
