"""The jobs of on-policy learning: values, policies at a temperature, models that give way."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.parallel import documents
from tests.parallel.cases import Case

if TYPE_CHECKING:
    import torch

    from alignctl.on_policy.samples import Samples

TEMPERATURE = 0.7
CLIP, VALUE_CLIP, KL_COEF, ENTROPY_COEF = 0.2, 0.1, 0.3, 0.05
LENGTHS = ((7, 4), (2, 1), (12, 9), (3, 6), (5, 2), (9, 11), (4, 3))
"""Tokens of each question and of its answer: seven, which no layout deals evenly."""
CORRECTIONS: dict[str, dict[str, Any]] = {
    "truncate": {"cap": 1.1},
    "mask_tokens": {"correction": "mask_tokens", "low": 0.8, "high": 1.2},
    "mask_samples": {"correction": "mask_samples", "low": 0.95, "high": 1.05},
    "none": {"correction": "none"},
}
"""Settings of `trust` that have an effect where log-probabilities differ by 0.3 or so."""


def episode() -> "Samples":
    """Answers of random tokens."""
    from alignctl.on_policy.samples import Samples

    random = np.random.default_rng(8)

    def tokens(count: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
        return random.integers(0, documents.VOCAB_SIZE, size=count, dtype=np.int32)

    questions, answers = zip(*[(tokens(q), tokens(a)) for q, a in LENGTHS], strict=True)
    answers[-1][-1] = documents.VOCAB_SIZE - 1  # beside the rows of padding
    return Samples(
        prompts=np.arange(len(LENGTHS)),
        groups=np.arange(len(LENGTHS)),
        questions=list(questions),
        answers=list(answers),
        logprobs=np.zeros(sum(length for _, length in LENGTHS)),
        is_finished=np.ones(len(LENGTHS), np.bool_),
    )


def noise(seed: int, scale: float = 1.0) -> "torch.Tensor":
    """A number for each token of the answers `[N]`."""
    import torch

    count = sum(length for _, length in LENGTHS)
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=count))


def batches(case: Case, engine: Any, samples: "Samples", part: range | None = None) -> Any:
    """This rank's micro batches of some answers, or of all."""
    return samples.batches(
        part or range(len(samples)),
        micro_batch_size=int(case.grouping),
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )


def value(case: Case, folder: Path) -> dict[str, Any]:
    """Values of all prefixes, and steps towards returns from old values nearby."""
    import torch

    from alignctl.algorithms.value_loss import ValueLoss
    from tests.parallel.jobs import engine_of

    samples = episode()
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, is_value=True)
    values = engine.target_outputs(batches(case, engine, samples), samples.segments)
    needed = [_flops_so_far(engine)]
    some = engine.target_outputs(batches(case, engine, samples, range(3)), samples.segments)
    known = torch.load(folder / case.model / "values.pt", weights_only=True)
    needed.append(_flops_so_far(engine))
    loss = ValueLoss(samples.segments, known + noise(1, 0.2), noise(2), clip=VALUE_CLIP)
    found = [
        engine.train_step(batches(case, engine, samples), loss, learning_rate=1e-3)
        for _ in range(3)
    ]
    return {
        "values": values.tolist(),
        "some": some.tolist(),
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "clip_fraction": [result.metrics["clip_fraction"] for result in found],
        "flops_forward": needed[0],
        "flops_of_a_step": (_flops_so_far(engine) - needed[1]) / 3,
    }


def _flops_so_far(engine: Any) -> float:
    """What all ranks' models have needed."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(engine.flops, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def policy(case: Case, folder: Path) -> dict[str, Any]:
    """Log-probabilities at a temperature, and a step of each policy loss."""
    import torch

    from tests.algorithms.experience import policy_loss
    from tests.parallel.jobs import engine_of

    samples = episode()
    segments = samples.segments
    engine = engine_of(
        case, folder, documents.TRAIN_OPTIMIZER, temperature=TEMPERATURE, with_entropy=True
    )
    all_batches = batches(case, engine, samples)
    logprobs = engine.target_outputs(all_batches, segments)
    own = torch.from_numpy(logprobs)
    known = torch.load(folder / case.model / "logprobs.pt", weights_only=True)
    given: Any = {"reference": known + noise(4, 0.3), "entropy_coef": ENTROPY_COEF}
    given |= {"kl_coef": KL_COEF, "has_entropy": True}
    old, advantages = known + noise(3, 0.2), noise(5)
    losses = {
        "start": policy_loss(segments, own, advantages, has_entropy=True),
        "ppo": policy_loss(segments, old, advantages, **given),
        "gspo": policy_loss(
            segments,
            old,
            advantages,
            variant="gspo",
            aggregation="sequence",
            weights=noise(6).exp(),
            **given,
        ),
        "cispo": policy_loss(
            segments,
            old,
            advantages,
            variant="cispo",
            aggregation="constant",
            max_tokens=16,
            mask=noise(7) > -1,
            **given,
        ),
    }
    found: dict[str, Any] = {"logprobs": logprobs.tolist()}
    # The rate is 0: each loss sees the same weights, so that errors do not add up.
    for name, loss in losses.items():
        found[name] = _step(engine, all_batches, loss)
    found["corrections"] = {
        name: _of_only_update(engine, all_batches, own, settings)
        for name, settings in CORRECTIONS.items()
    }
    return found


def _step(engine: Any, all_batches: Any, loss: Any) -> dict[str, float]:
    return _numbers(engine.train_step(all_batches, loss, learning_rate=0.0))


def _numbers(result: Any) -> dict[str, float]:
    return {"loss": result.loss, "grad_norm": result.grad_norm, **result.metrics}


def _of_only_update(
    engine: Any, all_batches: Any, own: "torch.Tensor", correction: dict[str, Any]
) -> dict[str, Any]:
    """A step that knows the old log-probabilities before, and one that finds them itself."""
    from alignctl.algorithms.policy_loss import PolicyLoss
    from alignctl.config.on_policy import Clipping, Trust
    from alignctl.on_policy.rollout_correction import check

    samples = replace(episode(), logprobs=(own + noise(8, 0.3)).numpy())
    settings, segments = Trust(max_difference=1.0, **correction), samples.segments
    sampler = own + noise(8, 0.3)
    found = {}
    for name, old in (("known", own), ("found", None)):
        loss = PolicyLoss(
            Clipping(),
            segments,
            noise(5),
            old_logprobs=old,
            sampler_logprobs=sampler,
            trust=settings,
        )
        found[name] = engine.train_step(all_batches, loss, learning_rate=0.0, segments=segments)
    return {
        **{name: _numbers(result) for name, result in found.items()},
        "logprobs": found["found"].target_outputs.tolist(),
        "masked": check(own.numpy(), samples, settings).metrics.get("mismatch_masked"),
    }


def offload(case: Case, folder: Path) -> dict[str, Any]:
    """An engine that gives its memory back between all steps, beside one that never does."""
    import torch

    staying, leaving = (_trained(case, folder, is_leaving=each) for each in (False, True))
    return {
        "different": [
            name
            for name, tensor in staying["tensors"].items()
            if not torch.equal(tensor, leaving["tensors"][name])
        ],
        "num_tensors": len(staying["tensors"]),
        "numbers": [staying["numbers"], leaving["numbers"]],
        "left": leaving["left"],
        "bytes": leaving["bytes"],
    }


def _trained(case: Case, folder: Path, *, is_leaving: bool) -> dict[str, Any]:
    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.config.sections import Lora
    from alignctl.engines.megatron import optimizer as megatron_optimizer
    from tests.parallel.jobs import engine_of

    lora = Lora(rank=4) if case.lora else None
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, lora=lora)
    samples = episode()
    left, sizes, numbers = [], [], []
    for _ in range(3):
        if is_leaving:
            sizes.append(engine.offload())
            left.append(sum(each.untyped_storage().nbytes() for each in _held(engine)))
            engine.onload()
            engine.onload()  # the second one has nothing to do
        numbers += engine.target_outputs(batches(case, engine, samples), samples.segments).tolist()
        result = engine.train_step(
            batches(case, engine, samples), CrossEntropy(), learning_rate=1e-3
        )
        numbers += [result.loss, result.grad_norm]
    tensors = dict(engine.model.named_parameters())
    tensors |= {str(n): each for n, each in enumerate(megatron_optimizer.tensors(engine.optimizer))}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "numbers": numbers,
        "left": left,
        "bytes": sizes,
    }


def _held(engine: Any) -> list[Any]:
    """All that an engine has on its device."""
    from alignctl.engines.megatron import optimizer as megatron_optimizer

    parameters = list(engine.model.parameters())
    gradients = [each.main_grad for each in parameters if each.requires_grad]
    moments = megatron_optimizer.tensors(engine.optimizer)
    return [*parameters, *engine.model.buffers(), *gradients, *moments]
