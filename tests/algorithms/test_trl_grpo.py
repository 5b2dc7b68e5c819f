"""The policy's losses and TRL's: its own method, on the same numbers, padded there."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms.experience import (
    batch_of,
    normal,
    policy_loss,
    policy_output,
    segments_of,
    targets_of,
)

pytestmark = pytest.mark.slow  # the import of TRL's trainer: ten seconds

LENGTHS = (4, 7, 1, 5)
SEGMENTS = segments_of(*LENGTHS)
LONGEST, COUNT, MAX_TOKENS = max(LENGTHS), sum(LENGTHS), 9
MASK = torch.arange(LONGEST)[None, :] < torch.tensor(LENGTHS)[:, None]

OLD = normal(0, COUNT) - 3
NEW = OLD + normal(1, COUNT, 0.5)
SCORES = normal(2, len(LENGTHS))
REFERENCE = OLD + normal(3, COUNT, 0.5)
WEIGHTS = normal(4, COUNT).exp().clamp(max=2)
ENTROPY = normal(5, COUNT).abs()


def padded(values: Tensor) -> Tensor:
    return values.new_zeros(MASK.shape).masked_scatter(MASK, values)


def trl(loss_type: str, **settings: Any) -> tuple[float, Tensor]:
    """Loss, and its gradient by the response's log-probabilities `[N]`."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    logprobs = padded(NEW).requires_grad_()
    options: dict[str, Any] = {
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "use_vllm": False,
        "entropy_coef": 0.0,
        "delta": None,
    } | settings
    trainer = SimpleNamespace(
        **options,
        loss_type=loss_type,
        args=SimpleNamespace(delta=options["delta"], use_bias_correction_kl=False),
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        max_completion_length=MAX_TOKENS,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=bool(options["entropy_coef"]),
        _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, padded(ENTROPY), None),
    )
    ids = torch.zeros(MASK.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": MASK.long(),
        "advantages": SCORES,
        "old_per_token_logps": padded(OLD),
        "ref_per_token_logps": padded(REFERENCE),
        "importance_sampling_ratio": padded(WEIGHTS),
        "num_items_in_batch": MASK.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad[MASK]


def ours(**settings: Any) -> tuple[float, Tensor]:
    loss = policy_loss(SEGMENTS, OLD, SEGMENTS.spread(SCORES), **settings)
    logprobs = NEW.clone().requires_grad_()
    batch = batch_of(SEGMENTS, range(len(LENGTHS)))
    entropy = ENTROPY.clone().requires_grad_() if loss.has_entropy else None
    output = policy_output(batch, SEGMENTS, logprobs, entropy)
    terms = loss(output, targets_of(batch), batch)
    (terms.total / terms.weight).backward()
    assert logprobs.grad is not None
    return (terms.total / terms.weight).item(), logprobs.grad


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"aggregation": "sequence"}, ("grpo", {})),
        ({}, ("bnpo", {})),
        ({"clip_high": 0.28}, ("dapo", {"epsilon_high": 0.28})),
        ({"aggregation": "constant", "max_tokens": MAX_TOKENS}, ("dr_grpo", {})),
        ({"dual_clip": 1.5}, ("dapo", {"delta": 1.5})),
        # TRL bounds the ratio from above only, and by the ratio itself.
        ({"variant": "cispo", "clip_low": 1.0, "clip_high": 0.5}, ("cispo", {"epsilon_high": 1.5})),
        (
            {"variant": "gspo", "aggregation": "sequence", "clip_low": 0.1, "clip_high": 0.1},
            (
                "grpo",
                {
                    "importance_sampling_level": "sequence",
                    "epsilon_low": 0.1,
                    "epsilon_high": 0.1,
                },
            ),
        ),
        ({"weights": WEIGHTS}, ("dapo", {"use_vllm": True})),
        ({"entropy_coef": 0.1, "has_entropy": True}, ("dapo", {"entropy_coef": 0.1})),
    ],
    ids=["grpo", "bnpo", "dapo", "dr_grpo", "delta", "cispo", "gspo", "weights", "entropy"],
)
def test_loss_and_gradient_are_those_of_trl(
    mine: dict[str, Any], theirs: tuple[str, dict[str, Any]]
) -> None:
    value, gradient = ours(**mine)
    loss_type, settings = theirs
    expected, expected_gradient = trl(loss_type, **settings)
    assert value == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12)


def test_the_penalty_has_trls_value_and_another_gradient() -> None:
    """TRL takes the gradient of k3, whose expectation is not that of the KL (see `kl`)."""
    value, gradient = ours(reference=REFERENCE, kl_coef=0.3)
    expected, expected_gradient = trl("dapo", beta=0.3)
    assert value == pytest.approx(expected, rel=1e-9)
    # The difference between the two: d - (1 - e^-d), per token, over all tokens.
    d = NEW - REFERENCE
    difference = 0.3 * (d - 1 + (-d).exp()) / COUNT
    assert torch.allclose(gradient - expected_gradient, difference, atol=1e-12)
