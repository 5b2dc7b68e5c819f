"""A torchrun job: optimizers in every state that they can be saved in, resumed twice.

results = saved_states.run(folder, "megatron", world=2)
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignctl.launch.job import Job, worker_environment

if TYPE_CHECKING:
    from torch import Tensor

    from alignctl.checkpoints.source import Source

ROOT = Path(__file__).parents[2]

KINDS: dict[str, list[dict[str, Any]]] = {
    "megatron": [
        {},
        {"distributed_optimizer": True},
        {"tp": 2},
        {"pp": 2, "distributed_optimizer": True},
    ],
    "deepspeed": [
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "offload_optimizer": True},
    ],
}
"""Layouts by engine."""


def run(folder: Path, engine: str, *, world: int) -> dict[str, list[str]]:
    """Runs all cases of an engine over the model in `folder`.

    Returns:
        By case, the tensors that differ from those of an engine that was never saved.
    """
    results = folder / f"{engine}_{world}.json"
    environment = os.environ | dict(worker_environment(2, os.environ)) | {"DS_ACCELERATOR": "cpu"}
    arguments = (str(folder), engine, str(results))
    job = Job("tests.engines.saved_states", arguments, nproc=world, master_port=0)
    done = subprocess.run(
        job.command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, list[str]] = json.loads(results.read_text())
    return found


# ---- what every rank runs ----


def main(folder: Path, engine: str, results: Path) -> None:
    """Goes through layouts, precisions, adapters or not, and steps before the save."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    initialize(engine)
    found: dict[str, list[str]] = {}
    for layout in KINDS[engine]:
        if world % (layout.get("tp", 1) * layout.get("pp", 1)):
            continue
        if engine == "megatron":
            _lay_out(layout)
        for precision, has_lora in (("fp32", False), ("bf16", False), ("bf16", True)):
            for steps in (0, 2):
                case = f"{layout} {precision} lora={has_lora} steps={steps}"
                where = folder / f"{engine}_{world}_{len(found)}"
                found[case] = _differences(
                    engine, folder / "hf", where, layout, precision, has_lora, steps
                )
    everybody: list[Any] = [None] * world
    dist.all_gather_object(everybody, found)
    if dist.get_rank() == 0:
        together = {case: [name for each in everybody for name in each[case]] for case in found}
        results.write_text(json.dumps(together))
    dist.barrier()
    dist.destroy_process_group()


def initialize(engine: str) -> None:
    if engine == "deepspeed":
        from alignctl.engines.deepspeed import engine as deepspeed

        deepspeed.initialize(seed=1, timeout_minutes=2)
        return
    from alignctl.config.sections import Parallel
    from alignctl.engines.megatron import cpu as megatron_cpu

    megatron_cpu.load()
    from alignctl.engines.megatron.groups import initialize

    initialize([Parallel()], seed=1, timeout_minutes=2)


def _lay_out(layout: dict[str, Any]) -> None:
    from alignctl.config.sections import Parallel
    from alignctl.engines.megatron.groups import lay_out

    lay_out([Parallel.model_validate(layout)], seed=1, timeout_minutes=2)


def make(
    engine: str, source: "Source", layout: dict[str, Any], precision: Any, has_lora: bool
) -> Any:
    from alignctl.config.sections import DeepSpeed, Lora, Parallel
    from alignctl.engines.deepspeed.engine import DeepSpeedEngine
    from alignctl.engines.megatron.engine import MegatronEngine
    from tests.parallel.documents import TRAIN_OPTIMIZER

    lora = Lora(rank=4) if has_lora else None
    if engine == "deepspeed":
        return DeepSpeedEngine(
            source.model,
            Parallel(),
            DeepSpeed.model_validate(layout),
            precision=precision,
            optimizer=TRAIN_OPTIMIZER,
            lora=lora,
        )
    return MegatronEngine(
        source.model,
        Parallel.model_validate(layout),
        precision=precision,
        seq_length=64,
        optimizer=TRAIN_OPTIMIZER,
        lora=lora,
    )


def _differences(
    kind: str,
    model: Path,
    folder: Path,
    layout: dict[str, Any],
    precision: str,
    has_lora: bool,
    steps: int,
) -> list[str]:
    """An engine that goes on beside others that are resumed from what it and they have saved."""
    import torch

    from alignctl.checkpoints.find import find
    from alignctl.engines import checkpoints

    source = find(model)
    one = make(kind, source, layout, precision, has_lora)
    one.load_weights(source, seed=3)
    one.create_optimizer()
    for number in range(steps):
        step(one, number)
    wrong = []
    for episode in (1, 2):
        save(one, folder, episode, source)
        step(one, steps + episode)
        other = make(kind, source, layout, precision, has_lora)
        other.create_optimizer()
        assert checkpoints.resume(other, folder / f"checkpoints/iter_{episode:07d}") == episode
        step(other, steps + episode)
        ours, theirs = _state(kind, one), _state(kind, other)
        assert ours.keys() == theirs.keys()
        wrong += [name for name in ours if not torch.equal(ours[name], theirs[name])]
        one = other  # the next save is that of a run that was resumed
    return wrong


def step(engine: Any, number: int) -> None:
    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.data.batch import Document, TokenBatch
    from tests.parallel import documents

    made = documents.make(2 * engine.data_parallel_size, seed=number)
    mine = made[engine.data_parallel_rank :: engine.data_parallel_size]
    small = [Document(each.tokens % 250 + 4, each.supervised, each.row) for each in mine]
    batches = [TokenBatch.from_documents([each]) for each in small]
    engine.train_step(batches, CrossEntropy(), learning_rate=1e-3)


def save(engine: Any, folder: Path, step: int, source: "Source") -> None:
    from alignctl.checkpoints import manifest
    from alignctl.engines.checkpoints import Checkpoints

    path = Checkpoints(folder / "checkpoints", source).save(engine, step)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files == {"alignctl.json", *manifest.read(path).files}, "a file has no checksum"


def _state(kind: str, engine: Any) -> "dict[str, Tensor]":
    """Weights, master weights and moments of this rank."""
    if kind == "deepspeed":
        found: dict[str, Tensor] = engine.optimizer.state_dict()
        return {name: tensor.clone() for name, tensor in found.items()}
    from alignctl.engines.megatron import optimizer as megatron_optimizer

    own = {f"weight {name}": each.detach() for name, each in engine.model.named_parameters()}
    for adamw in megatron_optimizer.adamws(engine.optimizer):
        masters = [master for group in adamw.param_groups for master in group["params"]]
        for number, master in enumerate(masters):
            state = {"master": master.detach()} | adamw.state[master]
            own |= {f"{number}.{name}": each for name, each in state.items()}
    return own


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
