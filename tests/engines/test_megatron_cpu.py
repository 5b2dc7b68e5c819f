import subprocess
import sys

import pytest
import torch

from alignctl.engines.megatron.cpu import CPU, _CudaMeansCpu


def test_what_names_cuda_is_made_on_the_cpu() -> None:
    with _CudaMeansCpu():
        made = [
            torch.zeros(2, device="cuda"),
            torch.zeros(2, device="cuda:1"),
            torch.tensor([1.0], device=torch.device("cuda", 3)),
            torch.ones(2).to("cuda"),
            torch.ones(2).to(device="cuda", dtype=torch.float64),
            torch.ones(2).cuda(),
        ]
    assert [tensor.device for tensor in made] == [CPU] * len(made)
    assert made[4].dtype == torch.float64


def test_the_optimizer_takes_tensors_for_those_of_a_gpu() -> None:
    """Megatron's compares their type with names such as torch.cuda.FloatTensor."""
    with _CudaMeansCpu():
        assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
        assert torch.zeros(1).bfloat16().type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(1).type(torch.float64).dtype == torch.float64


def test_gradients_flow_through_such_moves() -> None:
    leaf = torch.ones(2, requires_grad=True)
    with _CudaMeansCpu():
        (leaf.cuda() * torch.full((2,), 3.0, device="cuda")).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so cuda means cuda")
def test_outside_of_it_cuda_still_means_cuda() -> None:
    with _CudaMeansCpu():
        pass
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")


_LOADED = """
import sys, torch
compile_ = torch.compile
from alignctl.engines.megatron import cpu as megatron_cpu
megatron_cpu.load()
import alignctl.engines.megatron.engine
assert torch.compile is compile_
print(sorted({"torch._inductor.compile_fx", "megatron.core.models.gpt"} & set(sys.modules)))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's functions are compiled")
def test_megatron_comes_without_the_compiler() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _LOADED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "['megatron.core.models.gpt']\n", done.stderr
