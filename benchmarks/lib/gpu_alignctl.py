"""alignctl's engine on the rows of gpu.py: every kernel by itself, and each method."""

from importlib.util import find_spec
from typing import Any, get_args

import numpy as np
import torch

from alignctl.algorithms.cross_entropy import CrossEntropy
from alignctl.algorithms.dpo import DPO
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.algorithms.samples import Segments
from alignctl.config.kernels import Kernels
from alignctl.config.on_policy import Clipping
from alignctl.config.sections import Model, Optimizer, Parallel
from alignctl.data.batch import Document, PreferenceBatch, TokenBatch
from alignctl.engines.megatron import cpu as megatron_cpu
from benchmarks.lib import gpu_rows
from benchmarks.lib.gpu_rows import Scale

_CHUNK = 1024
_OPTIMIZER = Optimizer(lr=1e-5, weight_decay=0.0, clip_grad=1.0)


def variants() -> dict[str, dict[str, Any]]:
    """List the settings to compare: as they are, each other value of kernels, logits in chunks."""
    found: dict[str, dict[str, Any]] = {"": {}, f"logits_chunk_size={_CHUNK}": {}}
    for name, field in Kernels.model_fields.items():
        for value in (value for kind in get_args(field.annotation) for value in get_args(kind)):
            is_there = torch.cuda.is_available() or value not in ("flex", "transformer_engine")
            is_there &= value != "transformer_engine" or find_spec(value) is not None
            if value != field.default and is_there:
                found[f"{name}={value}"] = {name: value}
    return found


def measure(model: Model, scale: Scale, *, precision: Any) -> dict[str, Any]:
    """Time each method, and supervised fine-tuning with each kernel; what fails says so."""
    megatron_cpu.load()
    from alignctl.engines.megatron import groups as megatron_groups
    from alignctl.rollouts import alone

    found: dict[str, Any] = {}
    with alone.process_group():
        megatron_groups.initialize([Parallel()], seed=1, timeout_minutes=5)
        for method in gpu_rows.METHODS:
            chosen = variants() if method == "sft" else {"": {}}
            for name, kernels in chosen.items():
                if Kernels(**kernels).problems(model, "megatron"):
                    continue
                chunk = _CHUNK if "chunk" in name else None
                found[f"{method} {name}".strip()] = gpu_rows.attempt(
                    lambda m=method, k=kernels, c=chunk: _time(model, scale, m, precision, k, c)
                )
                torch.cuda.empty_cache()
    return found


def _time(
    model: Model, scale: Scale, method: str, precision: Any, kernels: Any, chunk: int | None
) -> Any:
    from alignctl.engines.megatron.engine import MegatronEngine

    engine = MegatronEngine(
        model,
        Parallel(logits_chunk_size=chunk),
        precision=precision,
        seq_length=scale.length,
        optimizer=_OPTIMIZER,
        kernels=Kernels(**kernels),
    )
    for parameter in engine.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    engine.create_optimizer()
    groups = gpu_rows.make_groups(method, scale, model.vocab_size)
    batches, loss = _inputs(groups, method, scale)
    return gpu_rows.run_steps(
        lambda: engine.train_step(batches, loss, learning_rate=1e-5),
        scale,
        tokens=gpu_rows.count_tokens(groups),
    )


def _inputs(groups: Any, method: str, scale: Scale) -> tuple[list[Any], Any]:
    """Make micro batches, prompts that rows have in common computed once, and the loss."""
    numbers = iter(range(10**6))
    documents = [[_document(*row, next(numbers)) for row in group] for group in groups]
    count = sum(map(len, documents))
    if method == "dpo":
        batches = [
            PreferenceBatch.from_groups(part, np.tile([1.0, 0.0], len(part)), share_prompts=True)
            for part in gpu_rows.chunked(documents, max(1, scale.micro_batch // 2))
        ]
        loss = DPO(np.zeros(count), "sigmoid", beta=0.1, label_smoothing=0.0, nll=0.0)
        return batches, loss
    if method == "sft":
        rows = [document for group in documents for document in group]
        parts = gpu_rows.chunked(rows, scale.micro_batch)
        return [TokenBatch.from_documents(part) for part in parts], CrossEntropy()
    lengths = torch.tensor([len(answer) for group in groups for _, answer in group])
    advantages = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).repeat_interleave(lengths)
    loss = PolicyLoss(Clipping(), Segments.of_lengths(lengths), advantages)
    size = max(1, scale.micro_batch // scale.samples)
    return [TokenBatch.sharing(part) for part in gpu_rows.chunked(documents, size)], loss


def _document(prompt: list[int], answer: list[int], number: int) -> Document:
    tokens = np.array(prompt + answer, np.int32)
    return Document(tokens, np.arange(len(tokens)) >= len(prompt), number)
