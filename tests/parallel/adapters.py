"""The jobs of low-rank adapters, beside what PEFT makes of the same numbers."""

from pathlib import Path
from typing import Any

from alignctl.config.sections import Lora, Optimizer
from tests.parallel import documents
from tests.parallel.cases import Case

LORA = Lora(rank=4, alpha=6.0)
DROPPING = LORA.model_copy(update={"dropout": 0.3})
DROPPED_STEPS, SEED = 3, 5
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

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.models.adapters import adapter_shapes
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, GRADIENT, lora=LORA)
    rank = engine.groups.tp.rank()
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
    from alignctl.algorithms.cross_entropy import CrossEntropy

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
    import torch

    from alignctl.checkpoints.find import find
    from alignctl.engines.checkpoints import Checkpoints
    from alignctl.engines.megatron.engine import MegatronEngine
    from alignctl.engines.megatron.weights import hf_weights
    from tests.parallel.jobs import engine_of

    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    saved = Checkpoints(folder / case.name / "checkpoints", source).save(engine, STEPS)
    whole = MegatronEngine(
        engine.architecture,
        case.parallel,
        precision=case.precision,
        seq_length=documents.SEQ_LENGTH,
        optimizer=None,
    )
    whole.load_weights(find(saved))
    pushed, expected = (dict(hf_weights(each)) for each in (engine, whole))
    different = [n for n, each in expected.items() if not torch.equal(each, pushed[n])]
    ours, merged = engine.logits(batch), whole.logits(batch)
    with engine.without_adapters():
        without = engine.logits(batch)
    before = engine_of(case, folder).logits(batch)
    if ours is None or merged is None or without is None or before is None:
        return {}
    return {
        "pushed_differently": different,
        "off": (without - before).abs().max().item(),
        "merged": (ours.float() - merged.float()).abs().max().item(),
        "largest": ours.abs().max().item(),
    }


def lora_dropout(case: Case, folder: Path) -> dict[str, Any]:
    """Steps with dropout before A; what falls away on which rank, and what they have in common."""
    import torch
    import torch.distributed as dist
    from megatron.core import tensor_parallel
    from torch.nn import functional

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.data.batch import TokenBatch
    from alignctl.models.lora import Adapters
    from alignctl.models.weight_map import Sliced
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, OPTIMIZER, lora=DROPPING)
    layer = engine.model.decoder.layers[0]
    kept: dict[str, list[list[bool]]] = {"column": [], "row": []}

    def watch(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """The mask of this pass, drawn from a copy of the state that the pass will draw from."""
        if not torch.is_grad_enabled() or len(kept["row" if module.is_row else "column"]) > 3:
            return
        with module._random_numbers():
            state = torch.get_rng_state()
            mask = functional.dropout(torch.ones_like(inputs[0]), DROPPING.dropout) > 0
            torch.set_rng_state(state)
        kept["row" if module.is_row else "column"].append(mask.flatten()[:64].tolist())

    # The ranks' own numbers too: the cases of a layout follow each other in one process.
    rank = engine.groups.tp.rank()
    tensor_parallel.model_parallel_cuda_manual_seed(SEED, tp_rank=rank, force_reset_rng=True)
    torch.manual_seed(SEED)
    if case.parallel.recompute == "none":
        for module in layer.modules():
            if isinstance(module, Adapters):
                module.register_forward_pre_hook(watch)
    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    found = [
        engine.train_step(
            documents.micro_batches(documents.of_step(step, count=COUNT), case.grouping, **share),
            CrossEntropy(),
            learning_rate=OPTIMIZER.lr,
        )
        for step in range(DROPPED_STEPS)
    ]
    whole = {
        engine.global_name(name): parameter.detach().flatten().tolist()
        for name, parameter in engine.model.named_parameters()
        if parameter.requires_grad
        and not isinstance(engine.rows[engine.global_name(name)].layout, Sliced)
    }
    everybody: list[Any] = [None] * case.world
    dist.all_gather_object(everybody, whole)
    same = all(
        mine[name] == other[name]
        for mine in everybody
        for other in everybody
        for name in mine.keys() & other.keys()
    )
    batch = TokenBatch.from_documents(documents.of_evaluation())
    rank = engine.groups.tp.rank()
    stage = engine.groups.pp.rank()
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "is_whole_the_same": same,
        f"kept_{stage}_{rank}": kept,
        **_saved(case, folder, engine, batch),
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
