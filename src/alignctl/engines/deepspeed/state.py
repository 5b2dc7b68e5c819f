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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alignctl.checkpoints import conversion
from alignctl.checkpoints.auxiliary_files import copy_auxiliary_files
from alignctl.checkpoints.formats import hf, peft, safetensors_file
from alignctl.checkpoints.manifest import HF_FOLDER, Base, FileRecord, Recorder
from alignctl.checkpoints.source import Source
from alignctl.checkpoints.tensors.dtypes import bits_of, dtype_of
from alignctl.checkpoints.tensors.lazy import Spec
from alignctl.config.sections import DeepSpeed, Head, Lora, Model
from alignctl.engines.base_model import base_of, gather_records, verify_share
from alignctl.engines.deepspeed.library import deepspeed
from alignctl.engines.deepspeed.optimizer import ZeroOptimizer
from alignctl.engines.device import IS_GPU
from alignctl.errors import UserError
from alignctl.models.adapters import PEFT_PREFIX, adapter_shapes, new_adapter
from alignctl.models.score_head import new_weights
from alignctl.models.transformers_lora import hf_parameters
from alignctl.models.weight_map import Weight, full_shape

FOLDER = "deepspeed"
"""Sub-folder of a checkpoint with the training state of each rank."""


class DeepSpeedState:
    """One rank's part of a model with its optimizer, as it is stored and loaded.

    Attributes:
        architecture: The whole model.
        zero: What each rank holds only a share of.
        head: What is on top.
        dtype: Of weights.
        lora: The adapters that are trained; None: all weights are.
        base: The model that they belong to.
        rows: The weight map of all parameters, those of adapters among them.
        model: Transformers' own.
        optimizer: None until it is created.
        skipped_steps: Of the steps so far, those that float16 could not take.
    """

    architecture: Model
    zero: DeepSpeed
    head: Head
    dtype: torch.dtype
    lora: Lora | None
    base: Base | None
    rows: dict[str, Weight]
    model: Any
    optimizer: ZeroOptimizer | None
    skipped_steps: int

    @property
    def is_partitioned(self) -> bool:
        """True if each rank holds only a share of every weight."""
        return self.zero.zero_stage == 3

    def load_weights(self, source: Source, *, seed: int = 0) -> None:
        """Fill the engine's model from a checkpoint of any kind and layout; no optimizer state.

        The first rank reads one full tensor at a time and tells the others. A policy has no score
        head: a reward model that starts from it gets a new one. So does every model get new
        adapters, if it is to have any.

        Args:
            source: The checkpoint.
            seed: Of a new head, and of new adapters.
        """
        model = self.architecture
        needs_head = source.head == "lm" and self.head != "lm"
        new = new_weights(self.head, model, seed=seed) if needs_head else {}
        adapters = adapter_shapes(model, self.lora) if self.lora else {}
        verify_share(source)
        if self.lora:
            self.base = base_of(source)
        parameters = hf_parameters(self.model)
        for name, row in self.rows.items():
            parts: Sequence[Tensor | None] = [None] * len(row.hf)
            if dist.get_rank() == 0:
                full = new.get(name)
                if name in adapters:
                    full = new_adapter(name, adapters[name], seed=seed)
                if full is None:
                    full = source.tensors[name].guard().make()
                parts = row.layout.split(full, model)
            for hf_name, part in zip(row.hf, parts, strict=True):
                _fill(self, parameters[hf_name], part)
        dist.barrier()

    def write(self, folder: Path, source: Source, tokenizer: Path | None) -> dict[str, FileRecord]:
        """Write a checkpoint but for its manifest; see `Engine`."""
        (folder / FOLDER).mkdir(exist_ok=True)
        with Recorder() as recorder:
            if self.lora:
                _write_adapters(self, folder, recorder)
            else:
                _write_weights(self, folder, source.hf_prefix, recorder)
            _write_tensors(_state(self), _rank_file(folder), recorder)
            records = gather_records(recorder.records(folder))
        if dist.get_rank() == 0:
            _write_auxiliary_files(self, replace(source, head=self.head), folder, tokenizer)
        return records

    def read(self, checkpoint: Path) -> None:
        """Restore what `write` wrote; see `Engine`."""
        assert self.optimizer is not None
        file = _rank_file(checkpoint)
        stored = safetensors_file.read(file)
        _compare(file, {name: each.shape for name, each in stored.items()}, self)
        state = {name: each.make() for name, each in stored.items()}
        self.skipped_steps = int(state.pop("skipped_steps", 0))
        torch.set_rng_state(state.pop("random.cpu"))
        if IS_GPU:
            torch.cuda.set_rng_state(state.pop("random.cuda"))
        self.optimizer.load_state_dict(state)


def _fill(engine: DeepSpeedState, parameter: Tensor, part: Tensor | None) -> None:
    """Give a parameter the first rank's values; the other ranks pass None."""
    with torch.no_grad(), _whole(engine, parameter, is_changed=True):
        if part is not None:
            parameter.copy_(part)
        if not engine.is_partitioned:
            dist.broadcast(parameter, 0)


def _whole(
    engine: DeepSpeedState, parameter: Tensor, *, is_changed: bool = False
) -> AbstractContextManager[Any]:
    """Make a parameter whole for a while; all ranks get what the first one changed in it."""
    if not engine.is_partitioned:
        return nullcontext()
    gather_records: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        parameter, modifier_rank=0 if is_changed else None
    )
    return gather_records


def _state(engine: DeepSpeedState) -> dict[str, Tensor]:
    """Collect the tensors that this rank needs to go on, by name."""
    assert engine.optimizer is not None
    states = engine.optimizer.state_dict() | {"random.cpu": torch.get_rng_state()}
    states["skipped_steps"] = torch.tensor(engine.skipped_steps)
    return states | ({"random.cuda": torch.cuda.get_rng_state()} if IS_GPU else {})


def _rank_file(checkpoint: Path) -> Path:
    return checkpoint / FOLDER / f"rank_{dist.get_rank()}.safetensors"


def _write_weights(engine: DeepSpeedState, folder: Path, prefix: str, recorder: Recorder) -> None:
    """Write the model's weights on the first rank; the others help it to make them whole."""
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


def _tensors(engine: DeepSpeedState, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        with _whole(engine, parameter):
            yield parameter.detach().cpu()


def _write_adapters(engine: DeepSpeedState, folder: Path, recorder: Recorder) -> None:
    """Write what is trained, on the first rank, under PEFT's names."""
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


def _write_auxiliary_files(
    engine: DeepSpeedState, source: Source, folder: Path, tokenizer: Path | None
) -> None:
    """Write config and tokenizer, beside whole weights or, with adapters, in a folder below."""
    if engine.lora is None:
        target = conversion.Target("hf", tokenizer=tokenizer)
        conversion.write_auxiliary_files(source, dtype_of(engine.dtype), folder, target)
        return
    copy_auxiliary_files(
        source.auxiliary, folder / HF_FOLDER, tokenizer=tokenizer, config=source.hf_config
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


def _compare(file: Path, shapes: Mapping[str, tuple[int, ...]], engine: DeepSpeedState) -> None:
    """Check that a file holds what this rank's optimizer needs."""
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
