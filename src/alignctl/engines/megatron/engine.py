"""The Megatron-Core engine: tensor, pipeline and sequence parallelism, distributed optimizer.

One forward path serves a laptop and 32 GPUs: micro batches without padding run through
Megatron's own schedules; the loss is a sum, and gradients are divided once, by the global weight
of the optimizer step. Models of several layouts lie on the same ranks: each has its own groups.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray
from torch import Tensor

from alignctl.algorithms.loss import Loss, Output, Scores, Values
from alignctl.algorithms.samples import Segments
from alignctl.checkpoints.manifest import Base
from alignctl.checkpoints.tensors.dtypes import BY_FLAG
from alignctl.config.kernels import Kernels
from alignctl.config.precision import LossScale, Precision
from alignctl.config.sections import Head, Lora, Model, Optimizer, Parallel
from alignctl.data.batch import IGNORE, TokenBatch
from alignctl.engines.device import DEVICE, IS_GPU, to_device
from alignctl.engines.flops import count_batches
from alignctl.engines.megatron import optimizer as megatron_optimizer
from alignctl.engines.megatron.forward_backward import LossPass, Observer
from alignctl.engines.megatron.groups import groups_of
from alignctl.engines.megatron.pipeline import KnownShapes
from alignctl.engines.megatron.state import MegatronState
from alignctl.engines.metrics import StepMetrics
from alignctl.engines.offload import Offloaded
from alignctl.engines.protocol import NonFiniteError, too_small
from alignctl.engines.sums import (
    gather_documents,
    gather_targets,
    reduce_documents,
    select_targets,
)
from alignctl.models.adapters import adapter_map
from alignctl.models.attention import Documents, choose_attention
from alignctl.models.families import weight_map
from alignctl.models.flex_attention import BLOCK
from alignctl.models.lora import add_lora, without_adapters
from alignctl.models.megatron import (
    LanguageModel,
    RewardModel,
    activation_fields,
    build,
    transformer_config,
)
from alignctl.models.weight_map import Sliced


class MegatronEngine(MegatronState):
    """A sharded model with its optimizer.

    Attributes:
        model: This rank's part of the model, unwrapped.
        architecture: The whole model.
        head: What is on top of it.
        lora: Its adapters; None where all weights are trained.
        base: With adapters, the model they were made for, once its weights are loaded.
        rows: The weight map of all parameters, those of adapters among them.
        parallel: The layout.
        groups: The process groups of that layout.
        data_parallel_rank: Which share of each batch is this rank's.
        data_parallel_size: How many shares there are.
        skipped_steps: How many steps so far were left out; see `Engine`.
        flops: Operations that all passes so far have needed of this rank; what it recomputes not.
        observer: Is told where the schedule is; None: nobody is.
    """

    def __init__(
        self,
        architecture: Model,
        parallel: Parallel,
        *,
        precision: Precision,
        seq_length: int,
        optimizer: Optimizer | None,
        loss_scale: LossScale | None = None,
        kernels: Kernels | None = None,
        head: Head = "lm",
        lora: Lora | None = None,
        is_value: bool = False,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> None:
        """Build the model; its weights are to be loaded before use.

        Args:
            architecture: The model.
            parallel: The layout, one of those that `groups.initialize` was called with.
            precision: Of weights and activations; all but fp32 with fp32 master weights and
                gradients.
            seq_length: Longest document, in tokens.
            optimizer: AdamW's settings; None for a model that is not trained.
            loss_scale: How losses are scaled in fp16; None for the usual settings.
            kernels: What computes its layers; None for the usual ones.
            head: What is on top.
            lora: Adapters, which are then trained with the head alone.
            is_value: Whether a head that scores does so at every learned target (`Values`).
            temperature: Of the sampling whose log-probabilities a policy is to give.
            with_entropy: Whether losses get the entropy too.
        """
        self.architecture, self.parallel = architecture, parallel
        self._kernels = kernels or Kernels()
        self._attention = choose_attention(architecture, self._kernels)
        self.groups = groups_of(parallel)
        self.head, self.lora, self.is_value = head, lora, is_value
        self.base: Base | None = None
        self.rows = weight_map(architecture, head)
        if lora is not None:
            self.rows |= adapter_map(architecture, lora)
        self.dtype: torch.dtype = BY_FLAG[precision].torch
        self.data_parallel_rank: int = self.groups.dp.rank()
        self.data_parallel_size: int = self.groups.dp.size()
        self.is_last_stage: bool = self.groups.pp.rank() == self.groups.pp.size() - 1
        self._seq_length = seq_length
        self._config = self._make_config()
        self.model = self._build_model()
        self.model.temperature, self.model.with_entropy = temperature, with_entropy
        self.model.logits_chunk_size = parallel.logits_chunk_size
        self.optimizer: Any = None
        if optimizer is not None:
            self._settings, self._scaling = optimizer, loss_scale or LossScale()
        self._wrapped = self._wrap_model(is_trained=optimizer is not None)
        self.skipped_steps = 0
        self.flops = 0.0
        self.observer: Observer | None = None
        self._offloaded: Offloaded | None = None

    def _make_config(self) -> TransformerConfig:
        """Make Megatron's view of the model, with the functions for this device."""
        activation = self._kernels.choose_activation(is_gpu=IS_GPU)
        return transformer_config(
            self.architecture,
            self.parallel,
            dtype=self.dtype,
            use_cpu_initialization=not IS_GPU,
            **activation_fields(self.architecture, activation),
        )

    def _build_model(self) -> LanguageModel:
        """Build this rank's part on the device, with its adapters; most weights are undefined."""
        model: LanguageModel = build(
            self.architecture,
            self._config,
            self.groups,
            max_sequence_length=self._seq_length,
            kernels=self._kernels,
            head=self.head,
            is_value=self.is_value,
        )
        if self.lora is not None:
            add_lora(model, self.architecture, self.lora)
        model.to(DEVICE)
        _zero_vocabulary_padding(model)
        return model

    def _wrap_model(self, *, is_trained: bool) -> Any:
        """Put Megatron's wrappers around the model: for 16-bit floats, and for gradients."""
        self._mark_sharded_parameters()
        wrapped: Any = self.model
        if self.dtype != torch.float32:
            wrapped = Float16Module(self._config, wrapped)
        if is_trained:
            wrapped = DistributedDataParallel(
                self._config,
                DistributedDataParallelConfig(
                    grad_reduce_in_fp32=True,
                    use_distributed_optimizer=self.parallel.distributed_optimizer,
                    overlap_grad_reduce=self.parallel.overlap_grad_reduce,
                    overlap_param_gather=self.parallel.overlap_param_gather,
                ),
                wrapped,
                pg_collection=self.groups,
            )
            if self.parallel.has_buckets:
                megatron_optimizer.check_buckets(wrapped, self.data_parallel_size)
            if self.parallel.overlap_grad_reduce:  # by the last micro batch alone
                self._config.no_sync_func = wrapped.no_sync
        return wrapped

    def _mark_sharded_parameters(self) -> None:
        """Mark the parameters that are cut: Megatron counts others once in the gradient norm.

        Its layers do this themselves only when they also draw random weights.
        """
        for name, parameter in self.model.named_parameters():
            layout = self.rows[self.global_name(name)].layout
            if isinstance(layout, Sliced) and not hasattr(parameter, "partition_dim"):
                tensor_parallel.set_tensor_model_parallel_attributes(parameter, True, layout.dim, 1)

    def create_optimizer(self) -> None:
        """Create AdamW with master weights taken from the model: call it once they are loaded."""
        self._wrapped.broadcast_params()
        self.optimizer = megatron_optimizer.create(
            self._wrapped,
            self.groups,
            self._settings,
            dtype=self.dtype,
            is_distributed=self.parallel.distributed_optimizer,
            loss_scale=self._scaling,
        )
        if self.dtype == torch.float16:
            self._config.grad_scale_func = self.optimizer.scale_loss

    def fill_optimizer(self) -> None:
        """Create the optimizer's state by a step: for a rank whose tensors have no numbers."""
        self._wrapped.zero_grad_buffer()
        self.optimizer.prepare_grads()
        self.optimizer.step_with_ready_grads()

    @property
    def loss_scale(self) -> float | None:
        """Factor of losses at present; None where they are not scaled; see `Engine`."""
        is_scaled = self.optimizer is not None and self.dtype == torch.float16
        return float(self.optimizer.get_loss_scale()) if is_scaled else None

    def train_step(
        self,
        micro_batches: Sequence[TokenBatch],
        loss: Loss,
        *,
        learning_rate: float,
        is_stop_requested: bool = False,
        segments: Segments | None = None,
    ) -> StepMetrics:
        """Take one optimizer step over this rank's micro batches; see `Engine`.

        Args:
            micro_batches: This rank's share; every rank has as many.
            loss: What is minimised.
            learning_rate: Of this step.
            is_stop_requested: Whether this rank was asked to stop.
            segments: Of all samples, to be told what the forward pass found for each learned
                target, as `target_outputs` does.
        """
        self._wrapped.train()
        self._wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        observed: list[tuple[TokenBatch, Tensor]] = []
        result = self._run(
            micro_batches,
            loss,
            forward_only=False,
            flag=is_stop_requested,
            observed=None if segments is None else observed,
        )
        if segments is not None:
            result = replace(result, target_outputs=gather_targets(observed, segments))
        if not math.isfinite(result.loss):
            raise NonFiniteError(f"the loss is {result.loss}")
        scale = self.loss_scale
        if self.optimizer.prepare_grads():  # which looks for infinities in float16 alone
            if scale == self._scaling.minimum:
                raise too_small(scale, result.loss)
            self.skipped_steps += 1
            return result
        grad_norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(grad_norm):
            raise NonFiniteError(f"the gradient norm is {grad_norm} at a loss of {result.loss:.4f}")
        megatron_optimizer.clip(self.optimizer, self._settings, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            # Megatron's own scheduler, which is not used here, is what heeds its mark of the
            # parameters without decay: biases and norms.
            group["weight_decay"] = self._settings.weight_decay * group["wd_mult"]
        self.optimizer.step_with_ready_grads()
        return replace(result, grad_norm=grad_norm)

    def evaluate(self, micro_batches: Sequence[TokenBatch], loss: Loss) -> StepMetrics:
        """Compute loss and metrics without an update; every rank has as many micro batches."""
        self._wrapped.eval()
        with torch.no_grad():
            return self._run(micro_batches, loss, forward_only=True, flag=False)

    def logits(self, batch: TokenBatch) -> Tensor | None:
        """Compute the logits of one micro batch `[T, vocabulary]`; None before the last stage.

        For verification: the vocabulary is gathered, which training never does.
        """
        found = self._collect([batch], lambda output, _: output, with_labels=False)
        if not found:
            return None
        ((_, collected),) = found
        gathered = tensor_parallel.gather_from_tensor_model_parallel_region(
            collected, group=self.groups.tp
        )
        whole: Tensor = gathered[: batch.num_tokens, : self.architecture.vocab_size]
        return whole

    def document_outputs(
        self, micro_batches: Sequence[TokenBatch], num_documents: int
    ) -> NDArray[np.float64]:
        """Compute the summed log-probability or score of each document `[D]`; see `Engine`."""
        return gather_documents(self._outputs(micro_batches, reduce_documents), num_documents)

    def target_outputs(
        self, micro_batches: Sequence[TokenBatch], segments: Segments
    ) -> NDArray[np.float64]:
        """Compute one number per learned target: its log-probability at the temperature, or value.

        Nothing is dropped out and nothing is learned; computed in float32.

        Args:
            micro_batches: This rank's share; every rank has as many.
            segments: Of all samples, whose numbers are in `TokenBatch.rows`.

        Returns:
            `[N]`, the same on every rank; NaN for samples in no rank's batches.
        """
        return gather_targets(self._outputs(micro_batches, select_targets), segments)

    def without_adapters(self) -> AbstractContextManager[None]:
        """Return a context in which the model computes what its base does."""
        assert self.lora is not None
        return without_adapters(self.model)

    def offload(self) -> int:
        """Give the device's memory back until `onload`; return how many bytes.

        Weights and the optimizer's state wait in the CPU's memory; gradients are dropped.
        """
        assert self._offloaded is None
        self.gather_weights()
        kept = [*self.model.parameters(), *self.model.buffers()]
        if self.optimizer is not None:
            kept += megatron_optimizer.tensors(self.optimizer)
        self._offloaded = Offloaded(kept, self.gradient_buffers())
        return self._offloaded.num_bytes

    def gradient_buffers(self) -> list[Tensor]:
        """List the float32 buffers that sum up gradients; none where nothing is trained."""
        if not isinstance(self._wrapped, DistributedDataParallel):
            return []
        buffers = [*self._wrapped.buffers, *self._wrapped.expert_parallel_buffers]
        return [buffer.grad_data for buffer in buffers]

    def onload(self) -> None:
        """Take the memory again that `offload` gave back; do nothing where it did not."""
        if self._offloaded is not None:
            self._offloaded.restore()
            self._offloaded = None

    def _outputs(
        self,
        micro_batches: Sequence[TokenBatch],
        read: Callable[[Output | Scores | Values, TokenBatch], Tensor],
    ) -> list[tuple[TokenBatch, Tensor]]:
        """Read a number of each target or document; return nothing on ranks that do not count."""
        found = self._collect(
            micro_batches,
            lambda output, batch: read(self._name_output(output), batch),
            with_labels=True,
        )
        return found if self.has_numbers else []

    def _collect(
        self,
        micro_batches: Sequence[TokenBatch],
        read: Callable[[Any, TokenBatch], Tensor],
        *,
        with_labels: bool,
    ) -> list[tuple[TokenBatch, Tensor]]:
        """Run micro batches forward; collect what is read of the last stage's output, if here."""
        self._wrapped.eval()
        found: list[tuple[TokenBatch, Tensor]] = []

        def forward(iterator: Iterator[TokenBatch], model: Any) -> tuple[Any, Callable[..., Any]]:
            batch = next(iterator)
            output, _ = self._forward(batch, model, with_labels=with_labels)

            def keep(output: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                values = read(output, batch)
                found.append((batch, values))
                return values.sum(), torch.zeros((), dtype=torch.int, device=DEVICE), {}

            return output, keep

        with torch.no_grad():
            self._schedule(forward, micro_batches)
        return found

    @property
    def has_numbers(self) -> bool:
        """True if this rank's numbers count: those of one rank of the last stage do."""
        return self.is_last_stage and self.groups.tp.rank() == 0

    def _name_output(self, output: Any) -> Output | Scores | Values:
        """Name what the model's last stage returns, for losses to read."""
        if self.head == "lm":
            return Output(*output)
        return Values(*output) if self.is_value else Scores(*output)

    def _run(
        self,
        micro_batches: Sequence[TokenBatch],
        loss: Loss,
        *,
        forward_only: bool,
        flag: bool,
        observed: list[tuple[TokenBatch, Tensor]] | None = None,
    ) -> StepMetrics:
        """Run the schedule and sum what the last stage found over all ranks.

        What it found for each learned target is put into `observed`, where one is given.
        """
        done = LossPass(loss, micro_batches, self.has_numbers, flag)

        def forward(iterator: Iterator[TokenBatch], model: Any) -> tuple[Any, Callable[..., Any]]:
            batch = next(iterator)
            output, targets = self._forward(batch, model, with_labels=True)

            def compute(output: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                named = self._name_output(output)
                if observed is not None and self.has_numbers:
                    observed.append((batch, select_targets(named, batch).detach()))
                total = done.compute(named, targets, batch)
                # The weight is summed by `LossPass`: Megatron counts in integers.
                return total, torch.zeros((), dtype=torch.int, device=DEVICE), {}

            return output, compute

        self._schedule(forward, micro_batches, None if forward_only else done)
        return done.sum_terms()

    def _schedule(
        self,
        forward: Callable[..., Any],
        batches: Sequence[TokenBatch],
        learned: LossPass | None = None,
    ) -> None:
        """Run Megatron's schedule for this layout: 1F1B with stages, else one after the other.

        Args:
            forward: Takes the next micro batch through the model.
            batches: This rank's micro batches.
            learned: What is learned, backward and all; None: forward alone.
        """
        needed = count_batches(
            self.architecture,
            batches,
            has_logits=self.head == "lm",
            is_whole=self.lora is None,
            is_learned=learned is not None,
        )
        self.flops += needed / (self.parallel.tp * self.parallel.pp)
        if self.observer is not None:
            self.observer.start_pass(batches, forward_only=learned is None)

        def finalize(*args: Any, **kwargs: Any) -> None:
            assert learned is not None
            if self.observer is not None:
                self.observer.finish_batches()
            learned.finalize_gradients(*args, **kwargs)

        self._config.finalize_model_grads_func = finalize
        get_forward_backward_func(self.parallel.pp)(
            forward_step_func=forward,
            data_iterator=iter(batches),
            model=[self._wrapped],
            num_microbatches=len(batches),
            seq_length=self._seq_length,
            micro_batch_size=1,
            forward_only=learned is None,
            pg_collection=self.groups,
            p2p_communicator=KnownShapes.between(
                self.groups.pp, self._config, [self.count_computed(each) for each in batches]
            ),
        )

    def _is_flex(self, batch: TokenBatch) -> bool:
        """Tell whether FlexAttention computes a batch: Transformer Engine knows no shared parts."""
        is_shared = self._attention == "transformer_engine" and bool(batch.pieces.parents)
        return is_shared or self._attention == "flex"

    def count_computed(self, batch: TokenBatch) -> int:
        """Count the tokens that are computed of a batch: it is filled up to whole parts.

        Sequence parallelism cuts the tokens evenly, and FlexAttention into blocks.
        """
        multiple = self.parallel.tp if self._config.sequence_parallel else 1
        if self._is_flex(batch):
            multiple = math.lcm(multiple, BLOCK)
        return -(-batch.num_tokens // multiple) * multiple

    def _forward(self, batch: TokenBatch, model: Any, *, with_labels: bool) -> tuple[Any, Tensor]:
        """Run one micro batch; also return its targets `[T]` as the output has them."""
        tokens, targets, pieces = batch.tokens, batch.targets, batch.pieces
        if extra := self.count_computed(batch) - batch.num_tokens:
            # A last document that nobody learns fills up.
            tokens = np.pad(tokens, (0, extra))
            targets = np.pad(targets, (0, extra), constant_values=IGNORE)
            pieces = pieces.with_filler(extra)
        is_flex = self._is_flex(batch)
        documents = Documents.at(pieces, targets != IGNORE, to_device, is_flex=is_flex)
        labels = to_device(targets)
        output = model(
            to_device(tokens)[None],
            position_ids=None,
            attention_mask=None,
            labels=labels[None] if with_labels else None,
            packed_seq_params=documents,
        )
        return output, labels


def _zero_vocabulary_padding(model: LanguageModel) -> None:
    """Fill the vocabulary tables with zeros: loading sets only the rows of real tokens."""
    if model.pre_process:
        torch.nn.init.zeros_(model.embedding.word_embeddings.weight)
    is_policy = not isinstance(model, RewardModel)
    if model.post_process and is_policy and model.output_layer.weight is not None:
        torch.nn.init.zeros_(model.output_layer.weight)
