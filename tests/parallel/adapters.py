"""The jobs of low-rank adapters, beside what PEFT makes of the same numbers."""

from pathlib import Path
from typing import Any

from alignctl.config.sections import Lora, Optimizer
from tests.parallel import documents
from tests.parallel.cases import Case

LORA = Lora(rank=4, alpha=6.0)
STEPS, COUNT = 5, 4
OPTIMIZER = Optimizer(lr=1e-2, weight_decay=0.1, clip_grad=1.0)
GRADIENT = OPTIMIZER.model_copy(update={"clip_grad": None})


def drawn(name: str, shape: tuple[int, int]) -> Any:
    """A full A or B that is not zero, a function of its name."""
    from alignctl.models.adapters import new_adapter

    return new_adapter(f"drawn {name} ", shape, seed=0)


def lora(case: Case, folder: Path) -> dict[str, Any]:
    """The gradient at adapters that are not zero, then a few steps from where training starts."""
    import torch
    import torch.distributed as dist

    from alignctl.data.batch import TokenBatch
    from tests.parallel.jobs import engine_of

    batch = TokenBatch.from_documents(documents.of_evaluation())
    found = _gradient(case, folder, batch)
    engine = engine_of(case, folder, OPTIMIZER, lora=LORA)
    frozen = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    trained = {n for n, p in engine.model.named_parameters() if p.requires_grad}
    found |= _steps(case, engine)
    found[f"changed_{dist.get_rank()}"] = [
        name
        for name, p in engine.model.named_parameters()
        if name not in trained
        and (not torch.equal(p, frozen[name]) or p.grad is not None or hasattr(p, "main_grad"))
    ]
    return found | _saved(case, folder, engine, batch)


def _gradient(case: Case, folder: Path, batch: Any) -> dict[str, Any]:
    """Logits and gradients of adapters that are not zero, and how far PEFT's are from them."""
    import numpy as np
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from alignctl.algorithms.sft import CrossEntropy
    from alignctl.models.adapters import adapter_shapes
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, GRADIENT, lora=LORA)
    rank = parallel_state.get_tensor_model_parallel_rank()
    with torch.no_grad():
        for local, parameter in engine.model.named_parameters():
            name = engine.global_name(local)
            if (shape := adapter_shapes(engine.architecture, LORA).get(name)) is not None:
                full = drawn(name, shape)
                parameter.copy_(engine.rows[name].layout.shard(full, rank, case.parallel.tp))
    found: dict[str, Any] = {}
    if (logits := engine.logits(batch)) is not None:
        theirs = torch.from_numpy(np.load(folder / case.model / "peft_logits.npy"))
        found["logits"] = (logits.float() - theirs).abs().max().item()
    engine.create_optimizer()
    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    batches = documents.micro_batches(documents.of_step(0, count=COUNT), case.grouping, **share)
    engine.train_step(batches, CrossEntropy(), learning_rate=0.0)
    if case.parallel.distributed_optimizer:
        return found  # no rank has a whole gradient then
    mine = {
        engine.global_name(name): p.main_grad.clone()
        for name, p in engine.model.named_parameters()
        if p.requires_grad
    }
    everybody: list[Any] = [None] * case.world
    dist.all_gather_object(everybody, (rank, mine))
    gradients = np.load(folder / case.model / "peft_gradients.npz")
    worst = 0.0
    for name in gradients.files:
        shards = {other: grads[name] for other, grads in everybody if name in grads}
        ordered = [shards[each] for each in range(case.parallel.tp)]
        whole = engine.rows[name].layout.unshard(ordered)
        theirs = torch.from_numpy(gradients[name])
        copies = [grads[name] for _, grads in everybody if name in grads]
        assert len(copies) == case.world // case.parallel.pp
        worst = max(worst, ((whole - theirs).abs().max() / theirs.abs().max()).item())
    return {**found, "gradients": worst, "num_gradients": len(gradients.files)}


def _steps(case: Case, engine: Any) -> dict[str, Any]:
    from alignctl.algorithms.sft import CrossEntropy

    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    found = [
        engine.train_step(
            documents.micro_batches(documents.of_step(step, count=COUNT), case.grouping, **share),
            CrossEntropy(),
            learning_rate=OPTIMIZER.lr,
        )
        for step in range(STEPS)
    ]
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
    }


def _saved(case: Case, folder: Path, engine: Any, batch: Any) -> dict[str, Any]:
    """A checkpoint of it, merged while it is loaded into a model without adapters."""
    from alignctl.checkpoints.source import find
    from alignctl.engines.megatron import MegatronEngine
    from alignctl.engines.megatron_state import load_weights

    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    saved = engine.save(
        folder / case.name / "checkpoints", STEPS, source=source, tokenizer=None, keep=None
    )
    whole = MegatronEngine(
        engine.architecture,
        case.parallel,
        precision=case.precision,
        seq_length=documents.SEQ_LENGTH,
        optimizer=None,
    )
    load_weights(whole, find(saved))
    ours, merged = engine.logits(batch), whole.logits(batch)
    if ours is None or merged is None:
        return {}
    return {
        "merged": (ours.float() - merged.float()).abs().max().item(),
        "largest": ours.abs().max().item(),
    }


def lora_reward(case: Case, folder: Path) -> dict[str, Any]:
    """A reward model from a policy: a new head, trained in full beside adapters."""
    from tests.parallel.jobs import engine_of
    from tests.parallel.rewards import course

    return course(case, engine_of(case, folder, OPTIMIZER, head="linear", lora=LORA))


def lora_dpo(case: Case, folder: Path) -> dict[str, Any]:
    """DPO's first step with adapters that are still zero: the policy is its own reference."""
    from tests.parallel.jobs import engine_of
    from tests.parallel.rewards import first_step

    return first_step(case, engine_of(case, folder, OPTIMIZER, lora=LORA))
