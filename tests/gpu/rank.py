"""One rank of the job of `tests.gpu.jobs`: measures parts on the device that it finds."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from alignctl.algorithms.cross_entropy import CrossEntropy
from alignctl.config.kernels import Kernels
from alignctl.config.sections import Parallel
from alignctl.data.batch import TokenBatch
from alignctl.engines import device, rendezvous
from alignctl.engines.megatron import cpu as megatron_cpu
from alignctl.errors import AlignctlError
from tests.gpu.jobs import KERNELS, PARALLEL
from tests.parallel import documents, shared
from tests.sanitizer.places import Operators, Places, watch

STEPS = 3
PATIENCE = 10.0
_SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaEventSynchronize")


def engine_of(
    folder: Path, family: str, parallel: Parallel, precision: Any = "fp32", variant: str = "plain"
) -> Any:
    """An engine with its optimizer."""
    from alignctl.checkpoints.find import find
    from alignctl.engines.megatron.engine import MegatronEngine

    source = find(folder / family / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    engine = MegatronEngine(
        source.model,
        parallel.model_copy(update=PARALLEL.get(variant, {})),
        precision=precision,
        seq_length=documents.SEQ_LENGTH,
        optimizer=documents.TRAIN_OPTIMIZER,
        kernels=Kernels.model_validate(KERNELS.get(variant, {})),
    )
    engine.load_weights(source)
    engine.create_optimizer()
    return engine


def batches_of(step: int, engine: Any) -> list[TokenBatch]:
    return documents.micro_batches(
        documents.of_step(step, count=8),
        "packed",
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )


def take_step(engine: Any, step: int) -> Any:
    rate = documents.TRAIN_OPTIMIZER.lr
    return engine.train_step(batches_of(step, engine), CrossEntropy(), learning_rate=rate)


def train(folder: Path, parallel: Parallel, family: str, precision: str, variant: str) -> Any:
    """Log-probabilities of documents, apart and sharing prompts; then a few steps."""
    engine = engine_of(folder, family, parallel, precision, variant)
    logprobs = []
    if engine.data_parallel_size == 1:
        found = documents.of_evaluation()
        logprobs.append(engine.document_outputs([TokenBatch.from_documents(found)], len(found)))
        count = sum(map(len, shared.answers()))
        for is_shared in (False, True):
            batches = shared.preferences("2", engine, share_prompts=is_shared)
            logprobs.append(engine.document_outputs(batches, count))
    results = [take_step(engine, step) for step in range(STEPS)]
    return {
        "logprobs": [values.tolist() for values in logprobs],
        "loss": [result.loss for result in results],
        "grad_norm": [result.grad_norm for result in results],
    }


def offload(folder: Path, parallel: Parallel, family: str) -> Any:
    """Bytes of the device that are given back, and whether the next step is that of another run."""
    engine, other = (engine_of(folder, family, parallel, "bf16") for _ in range(2))
    for each in (engine, other):
        take_step(each, 0)
    before = _bytes_held(engine)
    said = engine.offload()
    freed = before - _bytes_held(engine)
    engine.onload()
    losses = [take_step(each, 1).loss for each in (engine, other)]
    return {"said": said, "freed": freed, "back": _bytes_held(engine) - before, "losses": losses}


def _bytes_held(engine: Any) -> int:
    """Of the device's memory; on a CPU, of the engine's storages."""
    if device.IS_GPU:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    from alignctl.simulation.measures import held

    return held(engine).total


def waits(folder: Path, parallel: Parallel, family: str, places: Places | None) -> Any:
    """How often the host waits for the device in an optimizer step, and where."""
    engine = engine_of(folder, family, parallel)
    take_step(engine, 0)
    if places is not None:
        places.waits.clear()
        take_step(engine, 1)
        lines = {what: count for (*_, what), count in places.waits.items()}
        return {"count": sum(lines.values()), "lines": lines}
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.IS_GPU
    with profile(activities=kinds) as profiler:
        take_step(engine, 1)
    events = profiler.profiler.kineto_results.events()
    return {"count": sum(event.name() in _SYNCHRONISATIONS for event in events)}


def memory(folder: Path, parallel: Parallel, stage: str, preset: str, overrides: list[str]) -> Any:
    """Bytes that the engine holds, and what a step takes beyond that at its peak."""
    from alignctl.simulation.measures import held
    from tests.simulation import real_bytes

    config = real_bytes.config_of(stage, preset, overrides)
    if not device.IS_GPU:
        return real_bytes.measure(config)
    engine, step = real_bytes.prepare(config)
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    activations = torch.cuda.max_memory_allocated() - before
    return {**vars(held(engine)), "activations": activations}


def silent(folder: Path, parallel: Parallel) -> Any:
    """What rank 0 says of a rank 1 that does not come to a collective."""
    if dist.get_rank() == 1:
        time.sleep(2 * PATIENCE)
        os._exit(0)
    world = dist.group.WORLD
    assert world is not None

    def give_up(error: AlignctlError) -> None:
        Path(sys.argv[5]).write_text(json.dumps({"silent": {"message": error.message}}))
        os._exit(0)

    rendezvous.check_groups({"whole job's": world}, start_seconds=PATIENCE, give_up=give_up)
    return {"message": "the collective went through"}


PARTS = {
    "train": train,
    "offload": offload,
    "waits": waits,
    "memory": memory,
    "silent": silent,
}


def main(place: str, parts: dict[str, list[Any]], parallel: Parallel, folder: Path) -> Any:
    """Runs the parts; what one of them raises does not keep the others from running."""
    assert (place == "cuda") == device.IS_GPU
    megatron_cpu.load()
    places = watch() if place == "sanitizer" else None
    if places is not None:
        mode: Any = Operators(places)
        mode.__enter__()
    from alignctl.engines.megatron import groups

    groups.initialize([parallel], seed=1, timeout_minutes=2)
    found: dict[str, Any] = {}
    for name, (part, *arguments) in parts.items():
        more = {"places": places} if part == "waits" else {}
        try:
            found[name] = PARTS[part](folder, parallel, *arguments, **more)  # type: ignore[operator]
        except Exception:
            # Kept as this part's result, whose test fails with it.
            found[name] = {"error": traceback.format_exc()}
    return found


if __name__ == "__main__":
    _, place, parts, layout, folder, results = sys.argv
    found = main(place, json.loads(parts), Parallel.model_validate_json(layout), Path(folder))
    if dist.get_rank() == 0:
        Path(results).write_text(json.dumps(found))
    dist.destroy_process_group()
