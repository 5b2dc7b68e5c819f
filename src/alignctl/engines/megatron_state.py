"""The state of a Megatron engine on disk: weights from any source, checkpoints to resume from.

A checkpoint is Megatron-Core's distributed format. Weights can be read back at any layout; the
optimizer's state, when it is spread over data-parallel ranks, only at the layout it was saved at.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from alignctl.checkpoints import adapted, manifest
from alignctl.checkpoints.companions import copy_companions
from alignctl.checkpoints.dtypes import dtype_of
from alignctl.checkpoints.find import find
from alignctl.checkpoints.manifest import HF_FOLDER, Adapted, FileRecord, Manifest
from alignctl.checkpoints.source import Source
from alignctl.engines import checkpoint_folder, megatron_lora, megatron_optimizer, megatron_reader
from alignctl.engines.base_model import base_of, gathered
from alignctl.engines.device import IS_GPU
from alignctl.engines.megatron_writer import InProcessStrategy
from alignctl.launch.run_folder import RunFolder
from alignctl.models.adapters import adapter_shapes, new_adapter
from alignctl.models.score_head import new_weights
from alignctl.models.weight_map import Vocabulary, pad_rows

if TYPE_CHECKING:
    from alignctl.engines.megatron import MegatronEngine

_DISTRIBUTED_OPTIMIZER = {"distrib_optim_sharding_type": "dp_reshardable"}


def load_weights(engine: "MegatronEngine", source: Source, *, seed: int = 0) -> None:
    """Fills the engine's model from a checkpoint of any kind and layout; no optimizer state.

    Each rank reads the full tensors it has a part of, one at a time: no layout is written down
    on the way. A policy has no score head: a reward model that starts from it gets a new one. So
    does every model get new adapters, if it is to have any.

    Args:
        engine: The engine.
        source: The checkpoint.
        seed: Of a new head, and of new adapters.
    """
    model, parallel = engine.architecture, engine.parallel
    needs_head = source.head == "lm" and engine.head != "lm"
    new = new_weights(engine.head, model, seed=seed) if needs_head else {}
    rank = parallel_state.get_tensor_model_parallel_rank()
    adapters = adapter_shapes(model, engine.lora) if engine.lora else {}
    _verify(source)
    if engine.lora:
        engine.base = base_of(source)
    with torch.no_grad():
        for local_name, parameter in engine.model.named_parameters():
            name = engine.global_name(local_name)
            row, full = engine.rows[name], new.get(name)
            if name in adapters:
                full = new_adapter(name, adapters[name], seed=seed)
            if full is None:
                full = source.tensors[name].checked().make()
            if isinstance(row.layout, Vocabulary):
                full = pad_rows(full, model.padded_vocab_size(parallel.tp))
            parameter.copy_(row.layout.shard(full, rank, parallel.tp))
    dist.barrier()


def _model_state(engine: "MegatronEngine") -> dict[str, Any]:
    """A description of this rank's parameters, of those that are trained, for Megatron.

    Megatron's own, without the empty extra states; but it knows nothing of adapters.
    """
    if engine.lora:
        return megatron_lora.trained_state(engine)
    state: dict[str, Any] = engine.model.sharded_state_dict()
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def _random_state() -> dict[str, ShardedTensor]:
    """This rank's random states as tensors, each under a name of its own."""
    states = {"cpu": torch.get_rng_state()}
    if IS_GPU:
        states["cuda"] = torch.cuda.get_rng_state()
    states |= {
        f"tracker.{name}": state
        for name, state in tensor_parallel.get_cuda_rng_tracker().get_states().items()
    }
    rank = dist.get_rank()
    return {
        name: ShardedTensor.from_rank_offsets(f"random.{rank}.{name}", state.cpu())
        for name, state in states.items()
    }


def _set_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if IS_GPU:
        torch.cuda.set_rng_state(states["cuda"])
    tracker = tensor_parallel.get_cuda_rng_tracker()
    tracker.set_states({name: states[f"tracker.{name}"] for name in tracker.get_states()})


def _state(engine: "MegatronEngine", *, is_loading: bool) -> dict[str, Any]:
    model = _model_state(engine)
    metadata = _DISTRIBUTED_OPTIMIZER if engine.parallel.distributed_optimizer else None
    optimizer = engine.optimizer.sharded_state_dict(
        model, is_loading=is_loading, **({"metadata": metadata} if metadata else {})
    )
    _zero_gaps(optimizer)
    if not metadata and megatron_optimizer.adamws(engine.optimizer):
        # Megatron-Core 0.16.1 leaves the counter out before the first step.
        plain = optimizer.get("optimizer", optimizer)["state"]
        plain.setdefault("common_step", torch.zeros(()))
    return {
        "model": model,
        "optimizer": optimizer,
        "random": _random_state(),
        "skipped_steps": engine.skipped_steps,
    }


def _unshared(tree: Any) -> Any:
    """The same values with no container in two places.

    The groups of a new optimizer share their betas, those that were read back do not, and a pickle
    shows that: a run that was resumed would write other bytes.
    """
    if isinstance(tree, dict):
        return {key: _unshared(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unshared(value) for value in tree]
    if type(tree) is tuple:
        return tuple([_unshared(value) for value in tree])
    if isinstance(tree, ShardedObject):
        tree.data = _unshared(tree.data)
    return tree


def _layout(engine: "MegatronEngine") -> dict[str, int | bool]:
    return {
        "tp": engine.parallel.tp,
        "pp": engine.parallel.pp,
        "dp": engine.data_parallel_size,
        "distributed_optimizer": engine.parallel.distributed_optimizer,
        "is_gpu": IS_GPU,
    }


def save(
    engine: "MegatronEngine",
    checkpoints: Path,
    step: int,
    *,
    source: Source,
    tokenizer: Path | None,
    keep: int | None,
    score_offset: float | None = None,
) -> Path:
    """Writes a checkpoint that is either complete or absent, then points to it.

    Args:
        engine: The engine, between two steps.
        checkpoints: The folder of checkpoints.
        step: Optimizer steps taken so far.
        source: The model this run started from: its companions are kept, so that every
            checkpoint can become a Hugging Face folder on its own.
        tokenizer: Folder of the tokenizer it is trained with, if not the source's own.
        keep: How many of the newest checkpoints stay; None for all.
        score_offset: `Manifest.score_offset`, for a reward model that is done.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: The disk is full or not writable; older checkpoints are untouched.
    """
    partial = checkpoint_folder.partial_name(checkpoints, step)
    final = checkpoint_folder.final_name(checkpoints, step)
    if RunFolder(checkpoints.parent).latest_step() == step:
        return final  # replacing it would leave a moment without any
    is_first = dist.get_rank() == 0
    if is_first:
        checkpoint_folder.start(checkpoints, step)
    dist.barrier()
    megatron_optimizer.allocate_moments(engine.optimizer)
    dist_checkpointing.save(
        _unshared(_state(engine, is_loading=False)),
        str(partial),
        InProcessStrategy(),
        validate_access_integrity=False,
    )
    records = _gather_records(partial)
    if is_first:
        _describe(engine, partial, step, source, tokenizer, score_offset, records)
        checkpoint_folder.finish(checkpoints, step, keep=keep)
    dist.barrier()
    return final


def _gather_records(partial: Path) -> dict[str, FileRecord]:
    """Checksums of all ranks' files; each rank reads those that it wrote."""
    return gathered(
        {file.name: manifest.record(file) for file in partial.glob(f"__{dist.get_rank()}_*.distcp")}
    )


def _describe(
    engine: "MegatronEngine",
    partial: Path,
    step: int,
    source: Source,
    tokenizer: Path | None,
    score_offset: float | None,
    records: dict[str, FileRecord],
) -> None:
    """Adds the companions and the manifest to a checkpoint."""
    copy_companions(
        source.companions, partial / HF_FOLDER, tokenizer=tokenizer, config=source.hf_config
    )
    model = engine.architecture
    Manifest(
        iteration=step,
        role="policy" if engine.head == "lm" else "reward",
        head=engine.head,
        score_offset=score_offset,
        model=model,
        dtype=dtype_of(engine.dtype).name,
        padded_vocab_size=model.padded_vocab_size(engine.parallel.tp),
        hf_prefix=source.hf_prefix,
        adapted=Adapted(lora=engine.lora, base=engine.base) if engine.lora else None,
        training=_layout(engine),
    ).write(partial, manifest.record_all(partial, records))


def resume(engine: "MegatronEngine", checkpoint: Path) -> int:
    """Restores weights, optimizer and random states; returns the number of steps taken.

    Raises:
        UserError: The checkpoint was saved at another layout or on another kind of device, or it
            is damaged.
    """
    found = manifest.read(checkpoint)
    manifest.check_layout(checkpoint, found, _layout(engine))
    source = find(checkpoint)
    _verify(source)
    if source.adapted and found.adapted:
        load_weights(engine, source.adapted.base)
        engine.base = found.adapted.base
    megatron_optimizer.allocate_moments(engine.optimizer)
    loaded = megatron_reader.load(_state(engine, is_loading=True), checkpoint)
    engine.model.load_state_dict(loaded["model"], strict=False)
    with torch.no_grad():  # in float32 the master weights are views of the parameters
        engine.optimizer.load_state_dict(loaded["optimizer"])
    _set_step_counters(engine)
    engine.skipped_steps = loaded.get("skipped_steps", 0)
    _set_random_state(loaded["random"])
    dist.barrier()
    return found.iteration


def _set_step_counters(engine: "MegatronEngine") -> None:
    """Counts on from the saved step, which the distributed optimizer leaves in the groups.

    Megatron-Core 0.16.1 writes the counters of the state it allocated, zeros, over it.
    """
    for optimizer in megatron_optimizer.adamws(engine.optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"] if "step" in group else []:
                optimizer.state[parameter]["step"] = torch.tensor(float(group["step"]))


def _zero_gaps(tree: Any) -> None:
    """Gives the gaps between parameters in the distributed optimizer's buffers a defined content.

    Megatron describes them as uninitialised memory; equal runs are to write equal files.
    """
    if isinstance(tree, dict) and "padding" in tree:
        if tree["padding"].unwrap():
            for tensor in tree.values():
                if isinstance(tensor, ShardedTensor):
                    tensor.data.zero_()
    elif isinstance(tree, dict | list):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            _zero_gaps(branch)


def _verify(source: Source) -> None:
    """Compares the checksums of this rank's share of the files."""
    adapted.verify(source, share=dist.get_rank(), num_shares=dist.get_world_size())
