"""The torchrun jobs: one per world size, each running every case of that size.

    results = jobs.run(folder, world=2)

A process takes seconds to import Megatron and milliseconds to train a tiny model, so each job
goes through many layouts. Megatron's groups are laid out once, for all of them: so each case also
shows that its model asks for no other groups than its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignctl.launch.job import Job, worker_environment
from tests.parallel import documents
from tests.parallel.adapters import lora, lora_dpo, lora_dropout, lora_reward
from tests.parallel.cases import SUITES, Case
from tests.parallel.flex import flex
from tests.parallel.float16 import apart, float16, overflow
from tests.parallel.followed import dpo_follow, reward_follow
from tests.parallel.fused import fused
from tests.parallel.gradients import gradients
from tests.parallel.on_policy import offload, policy, value
from tests.parallel.overlap import overlap
from tests.parallel.preferences import dpo
from tests.parallel.pretraining import pretrain, pretrain_apart
from tests.parallel.rewards import dpo_start, new_head, reward
from tests.parallel.shared import shared
from tests.parallel.vocabulary import vocab_parallel

if TYPE_CHECKING:
    from alignctl.config.sections import Head, Lora
    from alignctl.engines.megatron.engine import MegatronEngine

ROOT = Path(__file__).parents[2]
TIMEOUT_MINUTES = 2

Result = dict[str, Any]


def run(folder: Path, *, world: int, suite: str = "all") -> dict[str, Result]:
    """Runs a suite's job of a world size over the models in `folder`; results by cases' names.

    Raises:
        RuntimeError: The job failed; the message ends with the last lines of its output.
    """
    results = folder / f"results_{suite}_{world}.json"
    environment = os.environ | dict(worker_environment(2, os.environ))
    job = Job("tests.parallel.jobs", (str(folder), str(results), suite), nproc=world, master_port=0)
    done = subprocess.run(
        job.command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )
    if done.returncode != 0:
        raise RuntimeError(f"the job of {world} ranks failed:\n{done.stderr[-6000:]}")
    found: dict[str, Result] = json.loads(results.read_text())
    return found


# ---- what every rank runs ----


def main(folder: Path, results: Path, suite: str) -> None:
    """Runs a suite's cases of this job's world size."""
    import torch
    import torch.distributed as dist

    from alignctl.config.sections import Parallel
    from alignctl.engines.megatron import cpu as megatron_cpu

    megatron_cpu.load()
    from alignctl.engines.megatron.groups import initialize

    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    cases = [case for case in SUITES[suite] if case.world == world]
    layouts = [Parallel(), *(case.parallel for case in cases)]
    initialize(layouts, seed=1, timeout_minutes=TIMEOUT_MINUTES)
    found: dict[str, Result] = {}
    for case in cases:
        mine = KINDS[case.kind](case, folder)
        # Some numbers exist on the last pipeline stage alone.
        everybody: list[Result] = [{} for _ in range(world)]
        dist.all_gather_object(everybody, mine)
        found[case.name] = {key: value for one in everybody for key, value in one.items()}
    if dist.get_rank() == 0:
        results.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def engine_of(
    case: Case,
    folder: Path,
    optimizer: Any = None,
    head: "Head | None" = None,
    lora: "Lora | None" = None,
    **kinds: Any,
) -> "MegatronEngine":
    """The engine of a case with its weights, and an optimizer where its settings are given.

    A head that the source does not have is a new one.
    """
    from alignctl.checkpoints.find import find
    from alignctl.engines.megatron.engine import MegatronEngine

    source = find(folder / case.model / case.load, vocab_divisor=documents.VOCAB_DIVISOR)
    assert source.model.vocab_divisor == documents.VOCAB_DIVISOR
    engine = MegatronEngine(
        source.model,
        case.parallel,
        precision=case.precision,
        seq_length=documents.SEQ_LENGTH,
        optimizer=optimizer,
        head=head or source.head,
        lora=lora,
        **kinds,
    )
    engine.load_weights(source)
    if optimizer is not None:
        engine.create_optimizer()
    return engine


def logits(case: Case, folder: Path) -> Result:
    """The largest difference to transformers' logits, seven documents in one batch."""
    import numpy as np
    import torch

    from alignctl.data.batch import TokenBatch

    engine = engine_of(case, folder)
    found = engine.logits(TokenBatch.from_documents(documents.of_evaluation()))
    if found is None:
        return {}
    expected = torch.from_numpy(np.load(folder / case.model / "logits.npy"))
    assert found.shape == expected.shape
    return {
        "difference": (found.float() - expected).abs().max().item(),
        "largest": expected.abs().max().item(),
    }


def train(case: Case, folder: Path) -> Result:
    """Loss, gradient norm and accuracy of a few steps."""
    steps = [documents.of_step(step, count=8) for step in range(documents.TRAIN_STEPS)]
    rates = [documents.TRAIN_OPTIMIZER.lr] * len(steps)
    return _steps(case, folder, documents.TRAIN_OPTIMIZER, steps, rates)


def follow(case: Case, folder: Path) -> Result:
    """The same twenty steps that `reference.train` takes."""
    from alignctl.algorithms.schedule import learning_rate

    settings, count = documents.FOLLOW_OPTIMIZER, documents.FOLLOW_STEPS
    steps = [documents.of_step(step, count=4) for step in range(count)]
    rates = [learning_rate(step, settings, total_steps=count) for step in range(count)]
    return _steps(case, folder, settings, steps, rates)


def _steps(
    case: Case,
    folder: Path,
    optimizer: Any,
    steps: list[Any],
    rates: list[float],
) -> Result:
    from alignctl.algorithms.cross_entropy import CrossEntropy

    engine = engine_of(case, folder, optimizer)
    assert engine.data_parallel_size == case.data_parallel_size
    found = []
    for step, rate in zip(steps, rates, strict=True):
        batches = documents.micro_batches(
            step,
            case.grouping,
            dp_rank=engine.data_parallel_rank,
            dp_size=engine.data_parallel_size,
        )
        found.append(engine.train_step(batches, CrossEntropy(), learning_rate=rate))
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "token_accuracy": [result.metrics["token_accuracy"] for result in found],
        "weight": [result.weight for result in found],
    }


def evaluate(case: Case, folder: Path) -> Result:
    """Loss and accuracy of documents that no layout can deal evenly."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    engine = engine_of(case, folder)
    batches = documents.micro_batches(
        documents.load(folder / case.model / "evaluation_documents.json"),
        case.grouping,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    result = engine.evaluate(batches, CrossEntropy())
    return {"loss": result.loss, "weight": result.weight, **result.metrics}


def master_weights(case: Case, folder: Path) -> Result:
    """Steps of 5e-4 on a norm near 1, where bf16 knows no numbers closer than 2e-3."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    settings = documents.TRAIN_OPTIMIZER.model_copy(update={"weight_decay": 0.0})
    engine = engine_of(case, folder, settings)
    norm = engine.model.decoder.final_layernorm.weight
    start = norm.detach().clone()
    batches = documents.micro_batches(
        documents.of_step(0, count=4),
        case.grouping,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    moved = []
    for _ in range(20):
        engine.train_step(batches, CrossEntropy(), learning_rate=5e-4)
        moved.append((norm != start).float().mean().item())
    (optimizer,) = engine.optimizer.chained_optimizers
    masters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    moments = [optimizer.optimizer.state[tensor]["exp_avg_sq"] for tensor in masters]
    return {
        "model": sorted({str(parameter.dtype) for parameter in engine.model.parameters()}),
        "gradients": sorted({str(p.main_grad.dtype) for p in engine.model.parameters()}),
        "masters": sorted({str(tensor.dtype) for tensor in masters}),
        "moments": sorted({str(tensor.dtype) for tensor in moments}),
        "moved_after_one": moved[0],
        "moved_after_all": moved[-1],
    }


def spoilt_steps(case: Case, folder: Path) -> Result:
    """A loss and a gradient that are not finite; then the step that would have come first."""
    import torch

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.algorithms.loss import LossTerms, Output
    from alignctl.engines.protocol import NonFiniteError

    class Spoilt(CrossEntropy):
        def __init__(self, *, loss: float) -> None:
            self.loss = loss

        def __call__(self, output: Output, targets: torch.Tensor, batch: Any) -> LossTerms:
            terms = super().__call__(output, targets, batch)
            # The root of 0 is 0, but its slope is infinite.
            spoilt = terms.total * self.loss + (0 * terms.total).sqrt()
            return LossTerms(spoilt, terms.weight, terms.metrics)

    def weights() -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in engine.model.parameters()])

    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER)
    batches = documents.micro_batches(
        documents.of_step(0, count=8), case.grouping, dp_rank=0, dp_size=1
    )
    before, messages = weights().clone(), []
    for loss in (float("nan"), 1.0):
        try:
            engine.train_step(batches, Spoilt(loss=loss), learning_rate=1e-3)
        except NonFiniteError as error:
            messages.append(error.message)
    is_unchanged = torch.equal(before, weights())
    result = engine.train_step(batches, CrossEntropy(), learning_rate=1e-3)
    return {
        "messages": messages,
        "is_unchanged": is_unchanged,
        "is_trained_then": not torch.equal(before, weights()),
        "loss": result.loss,
        "grad_norm": result.grad_norm,
    }


def stop(case: Case, folder: Path) -> Result:
    """What every rank hears when the last one is asked to stop; and the rows of logits."""
    import torch.distributed as dist

    from alignctl.algorithms.cross_entropy import CrossEntropy

    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER)
    batches = documents.micro_batches(
        documents.of_step(0, count=8), case.grouping, dp_rank=0, dp_size=1
    )
    rows: list[int] = []
    if engine.is_last_stage:
        engine.model.output_layer.register_forward_hook(
            lambda module, inputs, output: rows.append(inputs[0].shape[0])
        )
    rank, world = dist.get_rank(), dist.get_world_size()
    heard = [
        engine.train_step(
            batches,
            CrossEntropy(),
            learning_rate=1e-3,
            is_stop_requested=is_asked and rank == world - 1,
        ).is_stop_requested
        for is_asked in (False, True)
    ]
    found: Result = {f"heard_by_{rank}": heard}
    if engine.is_last_stage:
        found["rows"] = rows[: len(batches)]
        found["learned"] = [batch.num_targets for batch in batches]
    return found


def reshard(case: Case, folder: Path) -> Result:
    """What Megatron saves at this layout, read tensor by tensor by our own reader."""
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from alignctl.checkpoints.find import find
    from alignctl.checkpoints.formats import mcore

    engine = engine_of(case, folder)
    saved = folder / case.model / "resharded"
    if dist.get_rank() == 0:
        saved.mkdir()
    dist.barrier()
    metadata = {"dp_cp_group": engine.groups.dp_cp}
    state = engine.model.sharded_state_dict(metadata=metadata)
    weights = {key: value for key, value in state.items() if not key.endswith("_extra_state")}
    dist_checkpointing.save(weights, str(saved))
    dist.barrier()
    ours = mcore.read(saved)
    theirs = find(folder / case.model / "hf").tensors
    vocabulary = engine.architecture.vocab_size
    different = [
        name
        for name, tensor in theirs.items()
        if not torch.equal(ours[name].make()[:vocabulary], tensor.make()[:vocabulary])
    ]
    return {"different": different, "rows": ours["embedding.word_embeddings.weight"].shape[0]}


def plain_megatron(case: Case, folder: Path) -> Result:
    """A converted checkpoint in a GPTModel as Megatron builds it, by Megatron's own reader."""
    import numpy as np
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    told = json.loads((folder / case.model / "hf" / "config.json").read_text())
    config = TransformerConfig(
        num_layers=told["num_hidden_layers"],
        hidden_size=told["hidden_size"],
        num_attention_heads=told["num_attention_heads"],
        num_query_groups=told["num_key_value_heads"],
        kv_channels=told.get("head_dim", told["hidden_size"] // told["num_attention_heads"]),
        ffn_hidden_size=told["intermediate_size"],
        normalization="RMSNorm",
        layernorm_epsilon=told["rms_norm_eps"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=told["model_type"] == "qwen2",
        qk_layernorm=told["model_type"] == "qwen3",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(
            normalization="RMSNorm", qk_layernorm=told["model_type"] == "qwen3"
        ),
        vocab_size=documents.VOCAB_SIZE + documents.VOCAB_SIZE % documents.VOCAB_DIVISOR,
        max_sequence_length=documents.SEQ_LENGTH,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=told["tie_word_embeddings"],
    )
    checkpoint = folder / case.model / "mcore" / "release"
    state = dist_checkpointing.load(model.sharded_state_dict(), str(checkpoint))
    model.load_state_dict(state)
    expected = torch.from_numpy(np.load(folder / case.model / "logits.npy"))
    found = []
    with torch.no_grad():
        for document in documents.of_evaluation():
            tokens = torch.from_numpy(document.tokens[None, :-1].astype(np.int64))
            length = tokens.shape[1]
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
            found.append(model(tokens, torch.arange(length)[None], mask)[0])
    rows = torch.cat(found)[:, : documents.VOCAB_SIZE]
    return {"difference": (rows - expected).abs().max().item()}


KINDS: dict[str, Callable[[Case, Path], Result]] = {
    function.__name__: function
    for function in (
        logits,
        train,
        float16,
        overflow,
        apart,
        follow,
        evaluate,
        master_weights,
        vocab_parallel,
        spoilt_steps,
        stop,
        reshard,
        plain_megatron,
        dpo,
        reward,
        new_head,
        dpo_start,
        reward_follow,
        dpo_follow,
        pretrain,
        pretrain_apart,
        lora,
        lora_reward,
        lora_dpo,
        lora_dropout,
        value,
        policy,
        offload,
        overlap,
        shared,
        flex,
        fused,
        gradients,
    )
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
