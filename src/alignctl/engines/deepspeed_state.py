"""The state of a DeepSpeed engine on disk: weights from any source, checkpoints to resume from.

A checkpoint is a Hugging Face folder that anybody can read, with a sub-folder more:

    iter_0000100/model.safetensors, config.json, tokenizer.json ...
    iter_0000100/deepspeed/rank_0.safetensors     what rank 0 needs to go on
    iter_0000100/alignctl.json                    written last, with the checksums of all

DeepSpeed's own checkpoints are pickles; these are tensors only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from alignctl.checkpoints import conversion, hf, manifest, safetensors_file
from alignctl.checkpoints.dtypes import name_of
from alignctl.checkpoints.lazy import Spec, check_finite
from alignctl.checkpoints.manifest import FileRecord, Manifest, Recorder
from alignctl.checkpoints.source import Source
from alignctl.engines import checkpoint_folder
from alignctl.engines.deepspeed_library import deepspeed
from alignctl.engines.device import IS_GPU
from alignctl.errors import UserError
from alignctl.launch.run_folder import RunFolder
from alignctl.models.families import weight_map
from alignctl.models.score_head import new_weights
from alignctl.models.weight_map import full_shape

if TYPE_CHECKING:
    from alignctl.engines.deepspeed import DeepSpeedEngine

FOLDER = "deepspeed"
"""Sub-folder of a checkpoint with the training state of each rank."""


def load_weights(engine: "DeepSpeedEngine", source: Source, *, seed: int = 0) -> None:
    """Fills the engine's model from a checkpoint of any kind and layout; no optimizer state.

    The first rank reads one full tensor at a time and tells the others. A policy has no score
    head: a reward model that starts from it gets a new one.

    Args:
        engine: The engine.
        source: The checkpoint.
        seed: Of a new head.
    """
    model = engine.architecture
    needs_head = source.head == "lm" and engine.head != "lm"
    new = new_weights(engine.head, model, seed=seed) if needs_head else {}
    if source.manifest:
        _verify(source.path, source.manifest)
    parameters = dict(engine.model.named_parameters())
    for name, row in weight_map(model, engine.head).items():
        parts: Sequence[Tensor | None] = [None] * len(row.hf)
        if dist.get_rank() == 0:
            full = new.get(name)
            if full is None:
                full = source.tensors[name].make()
                check_finite(full, source.tensors[name].where)
            parts = row.layout.split(full, model)
        for hf_name, part in zip(row.hf, parts, strict=True):
            _fill(engine, parameters[hf_name], part)
    dist.barrier()


def _fill(engine: "DeepSpeedEngine", parameter: Tensor, part: Tensor | None) -> None:
    """Gives a parameter the first rank's values; the other ranks pass None."""
    with torch.no_grad(), _whole(engine, parameter, is_changed=True):
        if part is not None:
            parameter.copy_(part)
        if not engine.is_partitioned:
            dist.broadcast(parameter, 0)


def _whole(
    engine: "DeepSpeedEngine", parameter: Tensor, *, is_changed: bool = False
) -> AbstractContextManager[Any]:
    """Makes a parameter whole for a while; all ranks get what the first one changed in it."""
    if not engine.is_partitioned:
        return nullcontext()
    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        parameter, modifier_rank=0 if is_changed else None
    )
    return gathered


def _layout(engine: "DeepSpeedEngine") -> dict[str, int | bool]:
    return {
        "zero_stage": engine.zero.zero_stage,
        "dp": engine.data_parallel_size,
        "is_gpu": IS_GPU,
    }


def _state(engine: "DeepSpeedEngine") -> dict[str, Tensor]:
    """What this rank needs to go on, by name."""
    assert engine.optimizer is not None
    states = engine.optimizer.state_dict() | {"random.cpu": torch.get_rng_state()}
    return states | ({"random.cuda": torch.cuda.get_rng_state()} if IS_GPU else {})


def save(
    engine: "DeepSpeedEngine",
    checkpoints: Path,
    step: int,
    *,
    source: Source,
    tokenizer: Path | None,
    keep: int | None,
    score_offset: float | None = None,
) -> Path:
    """Writes a checkpoint that is either complete or absent, then points to it; see `Engine`."""
    partial = checkpoint_folder.partial_name(checkpoints, step)
    final = checkpoint_folder.final_name(checkpoints, step)
    if RunFolder(checkpoints.parent).latest_step() == step:
        return final  # replacing it would leave a moment without any
    is_first = dist.get_rank() == 0
    if is_first:
        checkpoint_folder.start(checkpoints, step)
        (partial / FOLDER).mkdir()
    dist.barrier()
    source = replace(source, head=engine.head)
    with Recorder() as recorder:
        _write_weights(engine, partial, source.hf_prefix, recorder)
        _write_state(_state(engine), _rank_file(partial), recorder)
        records = _gathered(recorder.records(partial))
    if is_first:
        target = conversion.Target("hf", tokenizer=tokenizer)
        conversion.write_companions(source, engine.dtype, partial, target)
        Manifest(
            format="hf",
            iteration=step,
            role=source.role,
            head=engine.head,
            score_offset=score_offset,
            model=engine.architecture,
            dtype=name_of(engine.dtype),
            padded_vocab_size=engine.architecture.vocab_size,
            hf_prefix=source.hf_prefix,
            training=_layout(engine),
        ).write(partial, records)
        checkpoint_folder.finish(checkpoints, step, keep=keep)
    dist.barrier()
    return final


def _rank_file(checkpoint: Path) -> Path:
    return checkpoint / FOLDER / f"rank_{dist.get_rank()}.safetensors"


def _write_weights(
    engine: "DeepSpeedEngine", folder: Path, prefix: str, recorder: Recorder
) -> None:
    """Writes the model's weights on the first rank; the others help it to make them whole."""
    model, rows = engine.architecture, weight_map(engine.architecture, engine.head)
    fulls = {name: Spec(full_shape(row, model), engine.dtype) for name, row in rows.items()}
    specs = hf.specs(model, engine.head, prefix, fulls)
    shards = hf.shards(specs, conversion.Target("hf").max_shard_bytes)
    parameters = dict(engine.model.named_parameters())
    parts = [specs[name] for shard in shards for name in shard]
    tensors = _tensors(engine, [parameters[rows[part.row].hf[part.number]] for part in parts])
    if dist.get_rank() == 0:
        hf.write(folder, shards, tensors, recorder=recorder)
    for _ in tensors:
        pass


def _tensors(engine: "DeepSpeedEngine", parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        with _whole(engine, parameter):
            yield parameter.detach().cpu()


def _write_state(state: Mapping[str, Tensor], file: Path, recorder: Recorder) -> None:
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    with recorder.open(file) as stream:
        writer = safetensors_file.Writer(stream, specs)
        for tensor in state.values():
            writer.write(tensor.cpu())


def _gathered(mine: dict[str, FileRecord]) -> dict[str, FileRecord]:
    """The files of all ranks."""
    gathered: list[dict[str, FileRecord]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mine)
    return {name: found for records in gathered for name, found in records.items()}


def resume(engine: "DeepSpeedEngine", checkpoint: Path) -> int:
    """Restores weights, optimizer and random states; returns the number of steps taken.

    Raises:
        UserError: The checkpoint was saved at another layout or on another kind of device, or it
            is damaged.
    """
    assert engine.optimizer is not None
    found = manifest.read(checkpoint)
    manifest.check_layout(checkpoint, found, _layout(engine))
    _verify(checkpoint, found)
    dist.barrier()  # nothing is used before all of it is known to be whole
    file = _rank_file(checkpoint)
    stored = safetensors_file.read(file)
    _compare(file, {name: each.shape for name, each in stored.items()}, engine)
    state = {name: each.make() for name, each in stored.items()}
    torch.set_rng_state(state.pop("random.cpu"))
    if IS_GPU:
        torch.cuda.set_rng_state(state.pop("random.cuda"))
    engine.optimizer.load_state_dict(state)
    dist.barrier()
    return found.iteration


def _compare(file: Path, shapes: Mapping[str, tuple[int, ...]], engine: "DeepSpeedEngine") -> None:
    """Makes sure that a file holds what this rank's optimizer needs."""
    assert engine.optimizer is not None
    for number, master in enumerate(engine.optimizer.masters):
        for name in ("master", "exp_avg", "exp_avg_sq"):
            if (shape := shapes.get(f"{number}.{name}")) != tuple(master.shape):
                raise UserError(
                    f"{file}: {number}.{name} has shape {shape}, but this run's optimizer keeps "
                    f"{tuple(master.shape)}",
                    "another version of DeepSpeed wrote it: use that one, or start a new run from "
                    "its weights: --load RUN --output NEW",
                )


def _verify(checkpoint: Path, found: Manifest) -> None:
    """Compares the checksums of this rank's share of the files."""
    manifest.verify_checksums(
        checkpoint, found, share=dist.get_rank(), num_shares=dist.get_world_size()
    )
