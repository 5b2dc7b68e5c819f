"""The state of a Megatron engine on disk: weights from any source, checkpoints to resume from.

A checkpoint is Megatron-Core's distributed format. Weights can be read back at any layout; the
optimizer's state, when it is spread over data-parallel ranks, only at the layout it was saved at.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection

from alignctl.checkpoints import manifest
from alignctl.checkpoints.auxiliary_files import copy_auxiliary_files
from alignctl.checkpoints.manifest import HF_FOLDER, Base, FileRecord
from alignctl.checkpoints.source import Source
from alignctl.config.sections import Head, Lora, Model, Parallel
from alignctl.engines.base_model import base_of, gather_records, verify_share
from alignctl.engines.device import IS_GPU
from alignctl.engines.megatron import lora as megatron_lora
from alignctl.engines.megatron import optimizer as megatron_optimizer
from alignctl.engines.megatron import reader as megatron_reader
from alignctl.engines.megatron.writer import InProcessStrategy
from alignctl.models.adapters import adapter_shapes, new_adapter
from alignctl.models.megatron import LanguageModel
from alignctl.models.score_head import new_weights
from alignctl.models.weight_map import Vocabulary, Weight, pad_rows

_DISTRIBUTED_OPTIMIZER = {"distrib_optim_sharding_type": "dp_reshardable"}


class MegatronState:
    """One rank's part of a model with its optimizer, as it is stored and loaded.

    Attributes:
        architecture: The whole model.
        parallel: How it is cut.
        groups: The process groups of that layout.
        head: What is on top.
        lora: The adapters that are trained; None: all weights are.
        base: The model that they belong to.
        rows: The weight map of all parameters, those of adapters among them.
        model: This rank's part.
        optimizer: Megatron's, None until it is created.
        data_parallel_size: How many shares of a batch there are.
        skipped_steps: Of the steps so far, those that float16 could not take.
    """

    architecture: Model
    parallel: Parallel
    groups: ProcessGroupCollection
    head: Head
    lora: Lora | None
    base: Base | None
    rows: dict[str, Weight]
    model: LanguageModel
    optimizer: Any
    _wrapped: Any
    data_parallel_size: int
    skipped_steps: int

    @property
    def checkpoint_format(self) -> Literal["mcore", "hf"]:
        """Format that `write` writes."""
        return "mcore"

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding over all tensor-parallel ranks."""
        return self.architecture.padded_vocab_size(self.parallel.tp)

    @property
    def layout(self) -> dict[str, int | bool]:
        """Layout at which a checkpoint must have been saved to be read."""
        return {
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
            "dp": self.data_parallel_size,
            "distributed_optimizer": self.parallel.distributed_optimizer,
            "overlap_grad_reduce": self.parallel.has_buckets,
            "is_gpu": IS_GPU,
        }

    def gather_weights(self) -> None:
        """Take what other ranks' steps have made of the weights, where that has not been done.

        With `overlap_param_gather` only a forward pass does so by itself, layer by layer. To be
        called, by every rank, before weights are read in another way.
        """
        if self.optimizer is not None and self.parallel.overlap_param_gather:
            self._wrapped.start_param_sync(force_sync=True)

    def global_name(self, local: str) -> str:
        """Return a parameter's name in the whole model: each stage counts its layers from 0."""
        if local == "output_layer.weight" and self.architecture.tie_embeddings:
            return "embedding.word_embeddings.weight"
        prefix, *rest = local.split("decoder.layers.")
        if not rest:
            return local
        layer, name = rest[0].split(".", 1)
        number = self.model.decoder.layers[int(layer)].layer_number - 1
        return f"{prefix}decoder.layers.{number}.{name}"

    def load_weights(self, source: Source, *, seed: int = 0) -> None:
        """Fill the engine's model from a checkpoint of any kind and layout; no optimizer state.

        Each rank reads the full tensors it has a part of, one at a time: no layout is written down
        on the way. A policy has no score head: a reward model that starts from it gets a new one.
        So does every model get new adapters, if it is to have any.

        Args:
            source: The checkpoint.
            seed: Of a new head, and of new adapters.
        """
        model, parallel = self.architecture, self.parallel
        needs_head = source.head == "lm" and self.head != "lm"
        new = new_weights(self.head, model, seed=seed) if needs_head else {}
        rank = self.groups.tp.rank()
        adapters = adapter_shapes(model, self.lora) if self.lora else {}
        verify_share(source)
        if self.lora:
            self.base = base_of(source)
        with torch.no_grad():
            for local_name, parameter in self.model.named_parameters():
                name = self.global_name(local_name)
                row, full = self.rows[name], new.get(name)
                if name in adapters:
                    full = new_adapter(name, adapters[name], seed=seed)
                if full is None:
                    full = source.tensors[name].guard().make()
                if isinstance(row.layout, Vocabulary):
                    full = pad_rows(full, model.padded_vocab_size(parallel.tp))
                parameter.copy_(row.layout.shard(full, rank, parallel.tp))
        dist.barrier()

    def write(self, folder: Path, source: Source, tokenizer: Path | None) -> dict[str, FileRecord]:
        """Write a checkpoint but for its manifest; see `Engine`."""
        self.gather_weights()
        megatron_optimizer.allocate_moments(self.optimizer)
        dist_checkpointing.save(
            _unshare(_state(self, is_loading=False)),
            str(folder),
            InProcessStrategy(),
            validate_access_integrity=False,
        )
        if dist.get_rank() == 0:
            copy_auxiliary_files(
                source.auxiliary, folder / HF_FOLDER, tokenizer=tokenizer, config=source.hf_config
            )
        return _gather_records(folder)

    def read(self, checkpoint: Path) -> None:
        """Restore what `write` wrote; see `Engine`."""
        megatron_optimizer.allocate_moments(self.optimizer)
        loaded = megatron_reader.load(_state(self, is_loading=True), checkpoint)
        self.model.load_state_dict(loaded["model"], strict=False)
        with torch.no_grad():  # in float32 the master weights are views of the parameters
            self.optimizer.load_state_dict(loaded["optimizer"])
        _set_step_counters(self)
        self.skipped_steps = loaded.get("skipped_steps", 0)
        _set_random_state(loaded["random"])


def _model_state(engine: MegatronState) -> dict[str, Any]:
    """Describe this rank's parameters, of those that are trained, for Megatron.

    Megatron's own, without the empty extra states; but it knows nothing of adapters.
    """
    if engine.lora:
        return megatron_lora.describe_trained(
            engine.model, engine.groups, engine.rows, engine.global_name
        )
    metadata = {"dp_cp_group": engine.groups.dp_cp}
    state: dict[str, Any] = engine.model.sharded_state_dict(metadata=metadata)
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def _random_state() -> dict[str, ShardedTensor]:
    """Collect this rank's random states as tensors, each under a name of its own."""
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


def _state(engine: MegatronState, *, is_loading: bool) -> dict[str, Any]:
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


def _unshare(tree: Any) -> Any:
    """Copy containers, so that none is in two places; values stay the same.

    The groups of a new optimizer share their betas, those that were read back do not, and a pickle
    shows that: a run that was resumed would write other bytes.
    """
    if isinstance(tree, dict):
        return {key: _unshare(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unshare(value) for value in tree]
    if type(tree) is tuple:
        return tuple([_unshare(value) for value in tree])
    if isinstance(tree, ShardedObject):
        tree.data = _unshare(tree.data)
    return tree


def _gather_records(partial: Path) -> dict[str, FileRecord]:
    """Compute the checksums of all ranks' files; each rank reads those that it wrote."""
    return gather_records(
        {file.name: manifest.record(file) for file in partial.glob(f"__{dist.get_rank()}_*.distcp")}
    )


def _set_step_counters(engine: MegatronState) -> None:
    """Set step counters to the saved step, which the distributed optimizer leaves in the groups.

    Megatron-Core 0.16.1 writes the counters of the state it allocated, zeros, over it.
    """
    for optimizer in megatron_optimizer.adamws(engine.optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"] if "step" in group else []:
                optimizer.state[parameter]["step"] = torch.tensor(float(group["step"]))


def _zero_gaps(tree: Any) -> None:
    """Fill the gaps between parameters in the distributed optimizer's buffers with zeros.

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
