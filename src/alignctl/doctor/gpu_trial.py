"""Whether a GPU computes: attention on it, then an all-reduce over all GPUs of the machine.

`python -m alignctl.doctor.gpu_trial DEVICE RANK RANKS STORE` prints each step as it begins it, so
that whoever started it knows where it hangs. DEVICE is cuda, or cpu to try this without a GPU.
"""

import sys
from datetime import timedelta
from importlib import import_module, metadata

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from alignctl.engines.device import stay_on_loopback

_SECONDS = 120


def main(device: str, rank: int, ranks: int, store: str) -> None:
    """Try what every step of training needs, on this process's device."""
    stay_on_loopback()
    _begin("start")
    place = torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(rank)
        place = torch.device("cuda", rank)
        torch.zeros(1, device=place)
        _begin("memory")
        torch.empty(2**28, dtype=torch.uint8, device=place).fill_(1)
    _begin("attention")
    _attend(place)
    if device == "cuda" and _has_transformer_engine():
        _begin("transformer-engine")
        import_module("transformer_engine.pytorch")
    _begin("all-reduce")
    _all_reduce(place, rank, ranks, store)
    _begin("done")


def _begin(step: str) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


def _attend(device: torch.device) -> None:
    """Compare causal attention in bf16, by the kernel of this device, with float64 on the CPU."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, 4, 256, 64)
    query, key, value = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
    found = scaled_dot_product_attention(
        query.to(device), key.to(device), value.to(device), is_causal=True
    )
    scores = query.double() @ key.double().transpose(-1, -2) / 8
    scores = scores.masked_fill(torch.ones(256, 256).triu(1).bool(), -torch.inf)
    error = float((found.cpu().double() - scores.softmax(-1) @ value.double()).abs().max())
    if not error < 0.05:  # bf16 has 8 bits: 0.004 of values up to 4
        raise RuntimeError(f"attention is wrong by {error:.3g}")


def _all_reduce(device: torch.device, rank: int, ranks: int, path: str) -> None:
    """Sum a number of every rank, 16 MiB of it, and compare."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(path, ranks)  # type: ignore[attr-defined]
    patience = timedelta(seconds=_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
    numbers = torch.full((2**22,), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    wanted = ranks * (ranks + 1) / 2
    found = numbers[:: 2**20].cpu().unique().tolist()
    dist.destroy_process_group()
    if found != [wanted]:
        raise RuntimeError(f"the sum over {ranks} GPUs is {found} instead of {wanted}")


def _has_transformer_engine() -> bool:
    return any(each.metadata["Name"] == "transformer-engine" for each in metadata.distributions())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
