"""The layouts of a job that fit onto its GPUs, the fastest first."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.run import TrainingConfig
from alignctl.planning.budget import counted
from alignctl.planning.cost import GPUS_PER_NODE, Cost, Job, estimate
from alignctl.planning.devices import Device
from alignctl.planning.job import predict, tokens_of_batch
from alignctl.planning.report import Report

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Plan:
    """A layout that was looked at.

    Attributes:
        config: The run.
        report: Its memory.
        cost: Its time for an optimizer step.
    """

    config: TrainingConfig
    report: Report
    cost: Cost

    @property
    def overrides(self) -> list[str]:
        """Settings that make the preset this run."""
        parallel, launch = self.config.parallel, self.config.launch
        found = {
            "launch.nproc_per_node": launch.nproc_per_node,
            "launch.nnodes": launch.nnodes,
            "parallel.tp": parallel.tp,
            "parallel.pp": parallel.pp,
            "parallel.sequence_parallel": parallel.sequence_parallel,
            "parallel.distributed_optimizer": parallel.distributed_optimizer,
            "parallel.recompute": parallel.recompute,
        }
        key, size = _micro_batch(self.config)
        found[f"batch.{key}"] = size
        if is_on_policy(self.config):
            found["offload"] = self.config.offload
        return [f"{key}={str(value).lower()}" for key, value in found.items()]

    def row(self) -> dict[str, Any]:
        """Describe the plan as a row for JSON."""
        parallel = self.config.parallel
        return {
            "tp": parallel.tp,
            "pp": parallel.pp,
            "dp": self.config.data_parallel_size,
            **dict([_micro_batch(self.config)]),
            "recompute": parallel.recompute,
            "distributed_optimizer": parallel.distributed_optimizer,
            "offload": getattr(self.config, "offload", False),
            "peak_gib": round(self.report.peak_gib, 2),
            "fits": self.report.fits,
            "seconds": round(self.cost.seconds, 3),
            "tokens_per_second_per_gpu": round(self.cost.tokens_per_second, 1),
            "mfu": round(self.cost.mfu, 4),
            "overrides": self.overrides,
        }


def _micro_batch(config: TrainingConfig) -> tuple[str, int]:
    """Return the knob that limits micro batches, and its value."""
    if is_on_policy(config) and config.batch.micro_batch_tokens is not None:
        return "micro_batch_tokens", config.batch.micro_batch_tokens
    return "micro_batch_size", config.batch.micro_batch_size


def look_at(config: TrainingConfig, device: Device, gpu_memory_gib: float) -> Plan:
    """Report on one layout: the run as it is configured."""
    # Of a budget of tokens the longest answers: they have most that attend to each other.
    full = counted(config)[0] if is_on_policy(config) else config
    tokens = tokens_of_batch(full)
    job = Job(
        config.architecture,
        config.parallel.tp,
        config.parallel.pp,
        config.data_parallel_size,
        micro_batch_tokens=tokens.total,
        document_tokens=tokens.longest,
        micro_batches=full.num_micro_batches,
        recompute=config.parallel.recompute,
        sequence_parallel=config.parallel.sequence_parallel,
        fuses_activation=config.kernels.choose_activation(is_gpu=True) == "fused",
        is_chunked=_is_chunked(config, tokens.learned),
        hides_gradients=config.parallel.overlap_grad_reduce,
        hides_weights=config.parallel.overlap_param_gather,
    )
    return Plan(config, predict(config, gpu_memory_gib=gpu_memory_gib), estimate(job, device))


def _is_chunked(config: TrainingConfig, learned: int) -> bool:
    """Tell whether a model that learns computes logits again, of so many positions."""
    size = config.parallel.logits_chunk_size
    has_logits = any(role.head == "lm" and role.is_trained for role in config.models.values())
    return has_logits and size is not None and learned > size


def fitting(
    config: TrainingConfig, device: Device, *, gpus: int, gpu_memory_gib: float
) -> list[Plan]:
    """List layouts that fit, the fastest first; of those alike in all but the micro batch, one.

    Args:
        config: The run; its layout and micro batch are not looked at.
        device: The GPUs.
        gpus: How many there are.
        gpu_memory_gib: What each has.
    """
    best: dict[tuple[Any, ...], Plan] = {}
    for candidate in _candidates(config, gpus):
        plan = look_at(candidate, device, gpu_memory_gib)
        if not plan.report.fits:
            continue
        parallel = candidate.parallel
        key = parallel.tp, parallel.pp, parallel.recompute, getattr(candidate, "offload", False)
        if key not in best or plan.cost.seconds < best[key].cost.seconds:
            best[key] = plan
    return sorted(best.values(), key=lambda plan: plan.cost.seconds)


def _candidates(config: TrainingConfig, gpus: int) -> Iterator[TrainingConfig]:
    """Yield every layout that the rules between sections allow."""
    tree = config.model_dump()
    per_node = min(gpus, GPUS_PER_NODE)
    stages = [
        pp for pp in range(1, config.model.num_layers + 1) if config.model.num_layers % pp == 0
    ]
    offloads = (False, True) if is_on_policy(config) else (None,)
    sizes = [1 << power for power in range(8)]
    key, unit = _micro_batch(config)[0], 1
    if is_on_policy(config) and key == "micro_batch_tokens":
        unit = config.fewest_tokens[0]
    for tp, pp in product((1, 2, 4, 8), stages):
        if tp > per_node or gpus % (tp * pp):
            continue
        share = config.batch.global_batch_size // (gpus // tp // pp)
        for size, recompute, offload in product(sizes, RECOMPUTE, offloads):
            if size > share or (share % size and key == "micro_batch_size"):
                continue
            changed = {
                **tree,
                "launch": {
                    **tree["launch"],
                    "nproc_per_node": per_node,
                    "nnodes": gpus // per_node,
                },
                "batch": {**tree["batch"], key: size * unit},
                "parallel": {
                    **tree["parallel"],
                    "tp": tp,
                    "pp": pp,
                    "sequence_parallel": tp > 1,
                    "distributed_optimizer": gpus > tp * pp,
                    "overlap_param_gather": config.parallel.overlap_param_gather and gpus > tp * pp,
                    "recompute": recompute,
                },
            }
            if offload is not None:
                changed["offload"] = offload
            try:
                yield type(config).model_validate(changed)
            except ValidationError:  # a rule says that this model cannot be cut so
                continue
