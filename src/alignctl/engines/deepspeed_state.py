"""The state of a DeepSpeed engine on disk: weights from any source, checkpoints to resume from.

A checkpoint is a Hugging Face folder that anybody can read, with a sub-folder more:

    iter_0000100/model.safetensors, config.json, tokenizer.json ...
    iter_0000100/deepspeed/rank_0.safetensors     what rank 0 needs to go on
    iter_0000100/alignctl.json                    written last, with the checksums of all

With adapters it is a folder of PEFT's, with the same sub-folder:

    iter_0000100/adapter_model.safetensors, adapter_config.json
    iter_0000100/hf/                              config and tokenizer of the whole model

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

from alignctl.checkpoints import adapted, conversion, hf, manifest, peft, safetensors_file
from alignctl.checkpoints.companions import copy_companions
from alignctl.checkpoints.dtypes import bits_of, dtype_of
from alignctl.checkpoints.find import find
from alignctl.checkpoints.lazy import Spec
from alignctl.checkpoints.manifest import HF_FOLDER, Adapted, Manifest, Recorder
from alignctl.checkpoints.source import Source
from alignctl.engines import checkpoint_folder
from alignctl.engines.base_model import base_of, gathered
from alignctl.engines.deepspeed_library import deepspeed
from alignctl.engines.device import IS_GPU
from alignctl.errors import UserError
from alignctl.launch.run_folder import RunFolder
from alignctl.models.adapters import PEFT_PREFIX, adapter_shapes, new_adapter
from alignctl.models.score_head import new_weights
from alignctl.models.transformers_lora import hf_parameters
from alignctl.models.weight_map import full_shape

if TYPE_CHECKING:
    from alignctl.engines.deepspeed import DeepSpeedEngine

FOLDER = "deepspeed"
"""Sub-folder of a checkpoint with the training state of each rank."""


def load_weights(engine: "DeepSpeedEngine", source: Source, *, seed: int = 0) -> None:
    """Fills the engine's model from a checkpoint of any kind and layout; no optimizer state.

    The first rank reads one full tensor at a time and tells the others. A policy has no score
    head: a reward model that starts from it gets a new one. So does every model get new adapters,
    if it is to have any.

    Args:
        engine: The engine.
        source: The checkpoint.
        seed: Of a new head, and of new adapters.
    """
    model = engine.architecture
    needs_head = source.head == "lm" and engine.head != "lm"
    new = new_weights(engine.head, model, seed=seed) if needs_head else {}
    adapters = adapter_shapes(model, engine.lora) if engine.lora else {}
    _verify(source)
    if engine.lora:
        engine.base = base_of(source)
    parameters = hf_parameters(engine.model)
    for name, row in engine.rows.items():
        parts: Sequence[Tensor | None] = [None] * len(row.hf)
        if dist.get_rank() == 0:
            full = new.get(name)
            if name in adapters:
                full = new_adapter(name, adapters[name], seed=seed)
            if full is None:
                full = source.tensors[name].checked().make()
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
    states["skipped_steps"] = torch.tensor(engine.skipped_steps)
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
        if engine.lora:
            _write_adapters(engine, partial, recorder)
        else:
            _write_weights(engine, partial, source.hf_prefix, recorder)
        _write_tensors(_state(engine), _rank_file(partial), recorder)
        records = gathered(recorder.records(partial))
    if is_first:
        _write_companions(engine, source, partial, tokenizer)
        Manifest(
            format="hf",
            iteration=step,
            role=source.role,
            head=engine.head,
            score_offset=score_offset,
            model=engine.architecture,
            dtype=dtype_of(engine.dtype).name,
            padded_vocab_size=engine.architecture.vocab_size,
            hf_prefix=source.hf_prefix,
            adapted=_adapted(engine),
            training=_layout(engine),
        ).write(partial, manifest.record_all(partial, records))
        checkpoint_folder.finish(checkpoints, step, keep=keep)
    dist.barrier()
    return final


def _adapted(engine: "DeepSpeedEngine") -> Adapted | None:
    if engine.lora is None or engine.base is None:
        return None
    return Adapted(lora=engine.lora, base=engine.base)


def _rank_file(checkpoint: Path) -> Path:
    return checkpoint / FOLDER / f"rank_{dist.get_rank()}.safetensors"


def _write_weights(
    engine: "DeepSpeedEngine", folder: Path, prefix: str, recorder: Recorder
) -> None:
    """Writes the model's weights on the first rank; the others help it to make them whole."""
    model, rows = engine.architecture, engine.rows
    fulls = {
        name: Spec(full_shape(row, model), dtype_of(engine.dtype)) for name, row in rows.items()
    }
    specs = hf.specs(model, engine.head, prefix, fulls)
    shards = hf.shards(specs, conversion.Target("hf").max_shard_bytes)
    parameters = hf_parameters(engine.model)
    parts = [specs[name] for shard in shards for name in shard]
    tensors = _tensors(engine, [parameters[rows[part.row].hf[part.number]] for part in parts])
    if dist.get_rank() == 0:
        hf.write(folder, shards, map(bits_of, tensors), recorder=recorder)
    for _ in tensors:
        pass


def _tensors(engine: "DeepSpeedEngine", parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        with _whole(engine, parameter):
            yield parameter.detach().cpu()


def _write_adapters(engine: "DeepSpeedEngine", folder: Path, recorder: Recorder) -> None:
    """Writes what is trained, on the first rank, under PEFT's names."""
    assert engine.lora is not None
    names = peft.names(engine.architecture, engine.lora, engine.head)
    parameters = hf_parameters(engine.model)
    trained = {
        # A head's have Hugging Face's names here, without the prefix.
        name: parameters[name if name in parameters else name.removeprefix(PEFT_PREFIX)]
        for name in sorted(names.values())
    }
    copies = [tensor.clone() for tensor in _tensors(engine, list(trained.values()))]
    if dist.get_rank() == 0:
        _write_tensors(dict(zip(trained, copies, strict=True)), folder / peft.WEIGHTS, recorder)


def _write_companions(
    engine: "DeepSpeedEngine", source: Source, folder: Path, tokenizer: Path | None
) -> None:
    """Writes config and tokenizer, beside whole weights or, with adapters, in a folder below."""
    if engine.lora is None:
        target = conversion.Target("hf", tokenizer=tokenizer)
        conversion.write_companions(source, dtype_of(engine.dtype), folder, target)
        return
    copy_companions(
        source.companions, folder / HF_FOLDER, tokenizer=tokenizer, config=source.hf_config
    )
    assert engine.base is not None
    base = Path(engine.base.path)
    peft.write_config(folder, engine.architecture, engine.lora, engine.head, base)


def _write_tensors(state: Mapping[str, Tensor], file: Path, recorder: Recorder) -> None:
    specs = {name: Spec.of(tensor) for name, tensor in state.items()}
    with recorder.open(file) as stream:
        writer = safetensors_file.Writer(stream, specs)
        for tensor in state.values():
            writer.write(bits_of(tensor))


def resume(engine: "DeepSpeedEngine", checkpoint: Path) -> int:
    """Restores weights, optimizer and random states; returns the number of steps taken.

    Raises:
        UserError: The checkpoint was saved at another layout or on another kind of device, or it
            is damaged.
    """
    assert engine.optimizer is not None
    found = manifest.read(checkpoint)
    manifest.check_layout(checkpoint, found, _layout(engine))
    source = find(checkpoint)
    _verify(source)
    if source.adapted and found.adapted:
        load_weights(engine, source.adapted.base)
        engine.base = found.adapted.base
    dist.barrier()  # nothing is used before all of it is known to be whole
    file = _rank_file(checkpoint)
    stored = safetensors_file.read(file)
    _compare(file, {name: each.shape for name, each in stored.items()}, engine)
    state = {name: each.make() for name, each in stored.items()}
    engine.skipped_steps = int(state.pop("skipped_steps", 0))
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


def _verify(source: Source) -> None:
    """Compares the checksums of this rank's share of the files."""
    adapted.verify(source, share=dist.get_rank(), num_shares=dist.get_world_size())
