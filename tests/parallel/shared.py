"""The job of shared prompts: every number with prompts computed for each answer, and once.

Once is twice: in micro batches by number, and by tokens.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from alignctl.data.batch import Document, PreferenceBatch
from alignctl.data.micro_batches import dealt_micro_batches
from tests.parallel import documents
from tests.parallel.cases import Case

if TYPE_CHECKING:
    from alignctl.on_policy.samples import Samples

SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (17, (9, 4, 12, 4, 1)),
    (1, (6, 11)),
    (24, (8,)),
    (5, (3, 14)),
)
"""Tokens of each prompt and of each of its answers; a prompt of one token has none to share."""


def answers() -> list[list[tuple[list[int], list[int]]]]:
    """Prompts with answers, in groups: the second answer begins the third, the fourth is it too.

    The prompts of the last group differ from their first token on.
    """
    random = np.random.default_rng(19)

    def tokens(count: int) -> list[int]:
        return random.integers(0, documents.VOCAB_SIZE, size=count).tolist()  # type: ignore[no-any-return]

    groups = []
    for length, lengths in SHAPES:
        prompt = tokens(length)
        groups.append([(prompt, tokens(each)) for each in lengths])
    (prompt, first), *others = groups[0]
    second = first[:4]
    groups[0] = [
        (prompt, first),
        (prompt, second),
        (prompt, second + others[1][1]),
        (prompt, second),
    ]
    groups[0].append(others[-1])
    groups[-1] = [(tokens(5), answer) for _, answer in groups[-1]]
    return groups


def episode() -> "Samples":
    """The same as an episode's answers."""
    from alignctl.on_policy.samples import Samples

    groups = answers()
    flat = [(number, *each) for number, group in enumerate(groups[:-1]) for each in group]
    count = sum(len(answer) for *_, answer in flat)
    prompts = np.asarray([number for number, *_ in flat])
    return Samples(
        prompts=prompts,
        groups=prompts,
        questions=[np.asarray(question, np.int32) for _, question, _ in flat],
        answers=[np.asarray(answer, np.int32) for *_, answer in flat],
        logprobs=np.zeros(count),
        is_finished=np.ones(len(flat), np.bool_),
    )


def _groups() -> list[list[Document]]:
    rows = iter(range(100))
    return [
        [
            Document(
                np.asarray(prompt + answer, np.int32),
                np.arange(len(prompt) + len(answer)) >= len(prompt),
                next(rows),
            )
            for prompt, answer in group
        ]
        for group in answers()
    ]


def preferences(
    grouping: str, engine: Any, *, share_prompts: bool, by_tokens: bool = False
) -> list[PreferenceBatch]:
    """This rank's micro batches: as many as without sharing; by tokens the largest is a batch."""
    groups = _groups()
    random = np.random.default_rng(4)
    scores = [random.random(len(group)) for group in groups]
    parts = dealt_micro_batches(
        [sum(len(each.tokens) for each in group) for group in groups],
        micro_batch_size=int(grouping),
        micro_batch_tokens=130 if by_tokens else None,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    return [
        PreferenceBatch.from_groups(
            [groups[place] for place in part],
            np.concatenate([scores[place] for place in part]) if part else np.zeros(0),
            share_prompts=share_prompts,
        )
        for part in parts
    ]


def episode_batches(
    grouping: str, engine: Any, *, share_prompts: bool, by_tokens: bool = False
) -> Any:
    """By tokens the first group, of 50 when it is shared, is cut."""
    samples = episode()
    return samples.batches(
        range(len(samples)),
        micro_batch_size=int(grouping),
        micro_batch_tokens=42 if by_tokens else None,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
        share_prompts=share_prompts,
    )


def shared(case: Case, folder: Path) -> dict[str, Any]:
    """Losses, norms, outputs and gradients of both ways, of a policy or of models that score."""
    import torch.distributed as dist

    found: dict[str, Any] = {}
    for name, numbers, gradients in _each(case, folder):
        found[name] = numbers
        found[f"{name}_gradients_{dist.get_rank()}"] = gradients
    return found


def _each(case: Case, folder: Path) -> Iterator[tuple[str, list[dict[str, Any]], float]]:
    """What was found in each way, and how far gradients are apart."""
    from alignctl.config.sections import Lora
    from tests.parallel.jobs import engine_of

    kinds: dict[str, Any] = {"lora": Lora(rank=4) if case.lora else None}
    if case.model.endswith("-reward"):
        engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, **kinds)
        yield "scores", *_both(case, engine, preferences, reward_loss())
        engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, is_value=True, **kinds)
        yield "values", *_both(case, engine, episode_batches, value_loss(), episode())
        return
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, with_entropy=True, **kinds)
    yield "preferences", *_both(case, engine, preferences, dpo_loss())
    yield "answers", *_both(case, engine, episode_batches, policy_loss(), episode())


def _both(
    case: Case, engine: Any, batches: Any, loss: Any, samples: "Samples | None" = None
) -> tuple[list[dict[str, Any]], float]:
    numbers: list[dict[str, Any]] = []
    gradients = []
    for share_prompts, by_tokens in ((False, False), (True, False), (True, True)):
        of_rank = batches(case.grouping, engine, share_prompts=share_prompts, by_tokens=by_tokens)
        numbers.append(measure(engine, of_rank, loss, samples))
        gradients.append([each.detach().clone() for each in engine.gradient_buffers()])
    return numbers, _furthest(*gradients)


def measure(
    engine: Any, of_rank: Any, loss: Any, samples: "Samples | None" = None
) -> dict[str, Any]:
    """What an engine finds of its micro batches, before and in a step that changes no weight."""
    outputs = (
        engine.document_outputs(of_rank, sum(map(len, answers())))
        if samples is None
        else engine.target_outputs(of_rank, samples.segments)
    )
    result = engine.train_step(of_rank, loss, learning_rate=0.0)
    return {
        "outputs": outputs.tolist(),
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "weight": result.weight,
        "tokens": result.num_tokens,
        "computed": result.num_computed_tokens,
        **{f"metric_{name}": value for name, value in result.metrics.items()},
    }


def assert_equal(apart: dict[str, Any], together: dict[str, Any]) -> None:
    """Losses and norms; of outputs, some of which are near 0, the difference beside the largest.

    Metrics are sums of differences, of which some are near 0 too.
    """
    assert together["computed"] < apart["computed"] <= apart["tokens"] == together["tokens"]
    assert together["weight"] == apart["weight"]
    for name in ("loss", "grad_norm"):
        assert together[name] == pytest.approx(apart[name], rel=1e-6), name
    for name in apart:
        if name.startswith("metric"):
            assert together[name] == pytest.approx(apart[name], rel=1e-6, abs=1e-6), name
    largest = max(map(abs, apart["outputs"]))
    assert together["outputs"] == pytest.approx(apart["outputs"], rel=0, abs=1e-6 * largest)


def _furthest(left: Sequence[Any], *others: Sequence[Any]) -> float:
    """The largest difference of gradients, relative to the largest element."""
    largest: float = max(each.abs().max().item() for each in left)
    apart = (a - b for right in others for a, b in zip(left, right, strict=True))
    furthest: float = max(each.abs().max().item() for each in apart)
    return furthest / largest


def dpo_loss() -> Any:
    from alignctl.algorithms.dpo import DPO

    count = sum(map(len, answers()))
    reference = -100 * np.random.default_rng(6).random(count)
    return DPO(reference, variant="sigmoid", beta=0.2, label_smoothing=0.1, nll=0.3)


def reward_loss() -> Any:
    from alignctl.algorithms.reward import BradleyTerry

    return BradleyTerry(margin=0.1, centering=0.01)


def _noise(seed: int, scale: float = 1.0) -> Any:
    import torch

    count = len(episode().logprobs)
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=count))


def policy_loss() -> Any:
    from tests.algorithms.experience import policy_loss

    return policy_loss(
        episode().segments,
        _noise(3) - 6,
        _noise(5),
        reference=_noise(4) - 6,
        entropy_coef=0.05,
        kl_coef=0.3,
        has_entropy=True,
    )


def value_loss() -> Any:
    from alignctl.algorithms.value_loss import ValueLoss

    return ValueLoss(episode().segments, _noise(1, 0.2), _noise(2), clip=0.1)
