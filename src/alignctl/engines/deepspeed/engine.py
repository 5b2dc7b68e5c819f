"""The DeepSpeed engine: transformers' layers, data parallelism with ZeRO 1, 2 or 3.

Micro batches without padding, the same losses and the same AdamW as the Megatron engine. The loss
is a sum; DeepSpeed's own averages over ranks and micro batches are undone, and gradients are
divided once, by the global weight of the optimizer step.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from alignctl import allocator
from alignctl.algorithms.loss import Loss, LossTerms, Output, Scores
from alignctl.checkpoints.manifest import Base
from alignctl.checkpoints.tensors.dtypes import BY_FLAG
from alignctl.config.precision import LossScale, Precision
from alignctl.config.sections import DeepSpeed, Head, Lora, Model, Optimizer, Parallel
from alignctl.data.batch import IGNORE, TokenBatch
from alignctl.engines.deepspeed.library import deepspeed
from alignctl.engines.deepspeed.optimizer import ZeroOptimizer
from alignctl.engines.deepspeed.state import DeepSpeedState
from alignctl.engines.device import DEVICE, IS_GPU, join, to_device
from alignctl.engines.metrics import StepMetrics
from alignctl.engines.protocol import NonFiniteError, too_small
from alignctl.engines.sums import gather_documents, reduce_documents, step_metrics
from alignctl.models.adapters import adapter_map
from alignctl.models.families import weight_map
from alignctl.models.transformers_lora import hf_parameters
from alignctl.models.transformers_model import build
from alignctl.models.weight_map import hf_shapes

_BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced at once: 200 MB in float32, and as much as ZeRO-3 gathers ahead."""


def initialize(*, seed: int, timeout_minutes: float) -> None:
    """Join the job's process group, once per process.

    Args:
        seed: Of everything random; each rank has random numbers of its own.
        timeout_minutes: How long a rank waits for the others in one collective.
    """
    if not IS_GPU:
        allocator.keep_freed()
    join(timeout_minutes)
    deepspeed.init_distributed(verbose=False, auto_mpi_discovery=False)
    torch.manual_seed(seed + dist.get_rank())


@cache
def _alone() -> dist.ProcessGroup:
    """Make a group of this rank only; all ranks ask for theirs together."""
    groups: list[dist.ProcessGroup] = [
        dist.new_group([rank]) for rank in range(dist.get_world_size())
    ]
    return groups[dist.get_rank()]


class DeepSpeedEngine(DeepSpeedState):
    """A model whose optimizer, gradients or weights are spread over the ranks: see `Engine`.

    Attributes:
        model: The model; at ZeRO-3 its parameters are empty except while they are computed with.
        architecture: The whole model.
        head: What is on top of it.
        lora: Its adapters; None where all weights are trained.
        base: With adapters, the model they were made for, once its weights are loaded.
        rows: The weight map of all parameters, those of adapters among them.
        zero: How it is spread.
        dtype: Of the weights.
        optimizer: Master weights and moments, once they are created.
        data_parallel_rank: Which share of each batch is this rank's.
        data_parallel_size: How many shares there are: one for each rank.
        skipped_steps: How many steps so far were left out; see `Engine`.
    """

    def __init__(
        self,
        architecture: Model,
        parallel: Parallel,
        zero: DeepSpeed,
        *,
        precision: Precision,
        optimizer: Optimizer | None,
        loss_scale: LossScale | None = None,
        head: Head = "lm",
        lora: Lora | None = None,
    ) -> None:
        """Build the model; its weights are to be loaded before use.

        Args:
            architecture: The model.
            parallel: Says what is recomputed; its tp and pp are 1.
            zero: How it is spread.
            precision: Of weights and activations; all but fp32 with fp32 master weights and
                gradients.
            optimizer: AdamW's settings; None for a model that is not trained.
            loss_scale: How losses are scaled in fp16; None for the usual settings.
            head: What is on top.
            lora: Adapters, which are then trained with the head alone.
        """
        assert parallel.tp == parallel.pp == 1
        self.architecture, self.head, self.zero = architecture, head, zero
        self.lora = lora
        self.base: Base | None = None
        self.rows = weight_map(architecture, head)
        if lora is not None:
            self.rows |= adapter_map(architecture, lora)
        self.dtype: torch.dtype = BY_FLAG[precision].torch
        self.data_parallel_rank = dist.get_rank()
        self.data_parallel_size = dist.get_world_size()
        self.optimizer: ZeroOptimizer | None = None
        self._settings, self._scaling = optimizer, loss_scale or LossScale()
        self.skipped_steps = 0
        self.model = build(
            architecture,
            head,
            lora=lora,
            recompute=parallel.recompute,
            alone=_alone(),
            dtype=self.dtype,
            device=DEVICE,
            partitioned=self._partition if self.is_partitioned else None,
        )
        self._deepspeed: Any = None

    def _set_mode(self, *, is_training: bool) -> None:
        """Prepare for forward passes: with dropout, or without.

        Before there is an optimizer, DeepSpeed is needed only to put partitioned weights together.
        """
        if self._deepspeed is None and self.is_partitioned:
            self._deepspeed, *_ = deepspeed.initialize(
                model=self.model, config=self._config(is_trained=False)
            )
        self.model.train(is_training)

    @property
    def checkpoint_format(self) -> Literal["mcore", "hf"]:
        """Format that `write` writes."""
        return "hf"

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the vocabulary, which nothing pads here."""
        return self.architecture.vocab_size

    @property
    def layout(self) -> dict[str, int | bool]:
        """Layout at which a checkpoint must have been saved to be read."""
        return {
            "zero_stage": self.zero.zero_stage,
            "dp": self.data_parallel_size,
            "is_gpu": IS_GPU,
        }

    def create_optimizer(self) -> None:
        """Create AdamW with master weights taken from the model: call it once they are loaded."""
        settings = self._settings
        assert settings is not None
        shapes = hf_shapes(weight_map(self.architecture, self.head), self.architecture)
        trained = {n: p for n, p in hf_parameters(self.model).items() if p.requires_grad}
        # ZeRO-3 leaves parameters without a shape. Biases and norms do not decay.
        vectors = [p for name, p in trained.items() if len(shapes.get(name, (1, 1))) == 1]
        matrices = [p for name, p in trained.items() if len(shapes.get(name, (1, 1))) > 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
        if self._deepspeed is not None:
            _remove(self._deepspeed)
        self._deepspeed, *_ = deepspeed.initialize(
            model=self.model, optimizer=adamw, config=self._config(is_trained=True)
        )
        is_scaled = self.dtype == torch.float16
        self.optimizer = ZeroOptimizer(self._deepspeed, adamw, self._scaling if is_scaled else None)

    @property
    def loss_scale(self) -> float | None:
        """Factor of losses at present; None where they are not scaled; see `Engine`."""
        scaler = None if self.optimizer is None else self.optimizer.scaler
        return None if scaler is None else float(scaler.cur_scale)

    def train_step(
        self,
        micro_batches: Sequence[TokenBatch],
        loss: Loss,
        *,
        learning_rate: float,
        is_stop_requested: bool = False,
    ) -> StepMetrics:
        """Take one optimizer step over this rank's micro batches; see `Engine`."""
        assert self.optimizer is not None
        self._set_mode(is_training=True)
        terms: list[LossTerms] = []
        for batch in micro_batches:
            is_last = len(terms) == len(micro_batches) - 1
            self._deepspeed.set_gradient_accumulation_boundary(is_last)
            found = self._terms(batch, loss)
            terms.append(_detach(found))
            total = found.total
            if is_last:
                result = self._sum_terms(terms, loss, micro_batches, flag=is_stop_requested)
                if not math.isfinite(result.loss):
                    total = total * math.nan  # such a gradient makes DeepSpeed forget the step
            self._deepspeed.backward(total, scale_wrt_gas=False)
        # DeepSpeed's gradient is the mean of the ranks' sums.
        divisor = (result.weight or 1.0) / self.data_parallel_size
        scale = self.loss_scale
        grad_norm = self.optimizer.step(divisor, learning_rate=learning_rate)
        if not math.isfinite(result.loss):
            raise NonFiniteError(f"the loss is {result.loss}")
        if grad_norm is None and scale is None:
            raise NonFiniteError(f"the gradient norm is not finite at a loss of {result.loss:.4f}")
        if grad_norm is None:
            if scale == self._scaling.minimum:
                raise too_small(scale, result.loss)
            self.skipped_steps += 1
        return StepMetrics(**{**vars(result), "grad_norm": grad_norm})

    def evaluate(self, micro_batches: Sequence[TokenBatch], loss: Loss) -> StepMetrics:
        """Compute loss and metrics without an update; see `Engine`."""
        self._set_mode(is_training=False)
        with torch.no_grad():
            terms = [self._terms(batch, loss) for batch in micro_batches]
        return self._sum_terms(terms, loss, micro_batches, flag=False)

    def document_outputs(
        self, micro_batches: Sequence[TokenBatch], num_documents: int
    ) -> NDArray[np.float64]:
        """Compute the summed log-probability or score of each document `[D]`; see `Engine`."""
        self._set_mode(is_training=False)
        with torch.no_grad():
            found = [
                (batch, reduce_documents(self._output(batch)[0], batch)) for batch in micro_batches
            ]
        return gather_documents(found, num_documents)

    def logits(self, batch: TokenBatch) -> Tensor:
        """Compute the logits of one micro batch `[T, vocabulary]`, for verification."""
        self._set_mode(is_training=False)
        with torch.no_grad():
            (logits,) = self._run(batch, None)
        return logits

    def _run(self, batch: TokenBatch, targets: Tensor | None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = (self._deepspeed or self.model)(
            to_device(batch.tokens),
            to_device(batch.pieces.positions),
            batch.pieces,
            to_device(self._read(batch)),
            targets,
        )
        return found

    def _read(self, batch: TokenBatch) -> NDArray[np.int64]:
        """Find the places that the head is computed for; on the GPU, it would wait for that."""
        if self.head != "lm":
            return np.array(batch.pieces.ends, np.int64)
        learned = np.flatnonzero(batch.targets != IGNORE)
        # Every rank must use every weight: one place with a gradient of zero does.
        return learned if learned.size else np.zeros(1, np.int64)

    def _output(self, batch: TokenBatch) -> tuple[Output | Scores, Tensor]:
        """Compute what losses read of one micro batch, and its targets `[T]`."""
        targets = to_device(batch.targets)
        found = self._run(batch, targets)
        return Output(*found) if self.head == "lm" else Scores(*found), targets

    def _terms(self, batch: TokenBatch, loss: Loss) -> LossTerms:
        return loss(*self._output(batch), batch)

    def _sum_terms(
        self, terms: Sequence[LossTerms], loss: Loss, batches: Sequence[TokenBatch], *, flag: bool
    ) -> StepMetrics:
        return step_metrics(
            terms,
            loss.metric_names,
            batches,
            is_stop_requested=flag,
        )

    def _partition(self) -> AbstractContextManager[Any]:
        """Return a context in which the parameters of new modules are spread over the ranks."""
        context: AbstractContextManager[Any] = deepspeed.zero.Init(
            config_dict_or_path=self._config(
                is_trained=False
            )  # DeepSpeed 0.19.8 does not heed its `dtype`
        )
        return context

    def _config(self, *, is_trained: bool) -> dict[str, Any]:
        """Build DeepSpeed's settings; it does not count the micro batches: the engine does."""
        zero: dict[str, Any] = {
            "stage": self.zero.zero_stage,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
        }
        if is_trained and self.zero.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": IS_GPU}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "steps_per_print": 1 << 62,
            # Its timer waits for the GPU twice in each micro batch, from the third step on.
            "timers": {"throughput": {"enabled": False}},
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,  # which would have to be compiled
            "bf16": {"enabled": self.dtype == torch.bfloat16},
            "fp16": {"enabled": self.dtype == torch.float16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "gradient_clipping": (self._settings and self._settings.clip_grad) or 0.0,
        }


def _remove(engine: Any) -> None:
    """Remove DeepSpeed's engine from a model that is to get another one."""
    engine.destroy()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()


def _detach(terms: LossTerms) -> LossTerms:
    return LossTerms(
        terms.total.detach(),
        terms.weight.detach(),
        {name: value.detach() for name, value in terms.metrics.items()},
    )
