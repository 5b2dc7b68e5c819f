"""The policy's losses: values and gradients by hand, and no dependence on the split."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from alignctl.algorithms.kl import k3
from alignctl.algorithms.loss import LossTerms, Output
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.algorithms.samples import Segments
from tests.algorithms.experience import (
    batch_of,
    normal,
    policy_loss,
    policy_output,
    samples_and_split,
    seeds,
    segments_of,
    targets_of,
    tokens,
)
from tests.algorithms.preferences import added

# Two samples, of 2 tokens and of 1; the ratios are 1.5, 0.5 and 2.
SEGMENTS = segments_of(2, 1)
OLD = tokens(-1, -2, -3)
NEW = OLD + tokens(math.log(1.5), math.log(0.5), math.log(2))
ADVANTAGES = tokens(1, 1, -2)


def terms_of(loss: PolicyLoss, logprobs: Tensor, entropy: Tensor | None = None) -> LossTerms:
    """Of all samples in one micro batch."""
    batch = batch_of(loss.segments, range(len(loss.segments.lengths)))
    output = policy_output(batch, loss.segments, logprobs, entropy)
    return loss(output, targets_of(batch), batch)


def value_and_gradient(loss: PolicyLoss, logprobs: Tensor) -> tuple[float, list[float]]:
    """As an engine takes them: divided by the weight."""
    logprobs = logprobs.clone().requires_grad_()
    terms = terms_of(loss, logprobs)
    value = terms.total / terms.weight
    value.backward()
    assert logprobs.grad is not None
    return value.item(), logprobs.grad.tolist()


def metrics_of(loss: PolicyLoss, logprobs: Tensor, entropy: Tensor | None = None) -> dict[str, Any]:
    terms = terms_of(loss, logprobs, entropy)
    assert tuple(terms.metrics) == loss.metric_names
    return {name: (value / terms.weight).item() for name, value in terms.metrics.items()}


def test_ppo_by_hand() -> None:
    """Token 1: min(1.5, 1.2) = 1.2, clipped, no gradient. Token 2: min(0.5, 0.8) = 0.5, gradient
    -0.5. Token 3: min(-4, -2.4) = -4, gradient 4. (-1.2 - 0.5 + 4) / 3 = 0.766667."""
    value, gradient = value_and_gradient(policy_loss(SEGMENTS, OLD, ADVANTAGES), NEW)
    assert value == pytest.approx(2.3 / 3)
    assert gradient == pytest.approx([0, -0.5 / 3, 4 / 3])


def test_unequal_bounds_by_hand() -> None:
    """Token 1: min(1.5, 1.28). With an advantage of -1 token 2: min(-0.5, -0.9) = -0.9."""
    loss = policy_loss(SEGMENTS, OLD, tokens(1, -1, -2), clip_low=0.1, clip_high=0.28)
    value, gradient = value_and_gradient(loss, NEW)
    assert value == pytest.approx((-1.28 + 0.9 + 4) / 3)
    assert gradient == pytest.approx([0, 0, 4 / 3])


def test_the_dual_clip_by_hand() -> None:
    """c = 1.5: token 3 costs at most 1.5 x 2 = 3, and has no gradient there. Tokens 1 and 2 have
    positive advantages: as before."""
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, dual_clip=1.5)
    value, gradient = value_and_gradient(loss, NEW)
    assert value == pytest.approx((-1.2 - 0.5 + 3) / 3)
    assert gradient == pytest.approx([0, -0.5 / 3, 0])
    assert metrics_of(loss, NEW)["dual_clip_fraction"] == pytest.approx(1 / 3)


def test_aggregations_by_hand() -> None:
    """Token losses -1.2, -0.5 and 4: sequence means -0.85 and 4; sums -1.7 and 4, over 10."""
    values = {
        "sequence": value_and_gradient(
            policy_loss(SEGMENTS, OLD, ADVANTAGES, aggregation="sequence"), NEW
        ),
        "constant": value_and_gradient(
            policy_loss(SEGMENTS, OLD, ADVANTAGES, aggregation="constant", max_tokens=10), NEW
        ),
    }
    assert values["sequence"][0] == pytest.approx((-0.85 + 4) / 2)
    assert values["sequence"][1] == pytest.approx([0, -0.5 / 4, 4 / 2])
    assert values["constant"][0] == pytest.approx((-1.7 + 4) / 10 / 2)
    assert values["constant"][1] == pytest.approx([0, -0.5 / 20, 4 / 20])


def test_gspo_by_hand() -> None:
    """The sequence ratios are sqrt(1.5 x 0.5) = 0.866025 and 2. With A = 1 and bounds of 0.2 the
    first is inside: each token costs -0.866025, with that gradient. With A = -2 the second costs
    4. Sequence means -0.866025 and 4."""
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, variant="gspo", aggregation="sequence")
    value, gradient = value_and_gradient(loss, NEW)
    root = math.sqrt(0.75)
    assert value == pytest.approx((-root + 4) / 2)
    assert gradient == pytest.approx([-root / 4, -root / 4, 4 / 2])
    assert metrics_of(loss, NEW)["ratio"] == pytest.approx((root + 2) / 2)


def test_gspo_has_the_gradient_of_the_sequence_ratio() -> None:
    """-s A per sequence, s = exp(mean of log-ratios), its gradient s A / length for each token."""
    logprobs = NEW.clone().requires_grad_()
    ratios = SEGMENTS.means(logprobs - OLD).exp()
    (-(ratios * tokens(1, -2)).mean()).backward()
    assert logprobs.grad is not None
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, variant="gspo", aggregation="sequence")
    assert value_and_gradient(loss, NEW)[1] == pytest.approx(logprobs.grad.tolist())


def test_gspo_clips_all_of_a_sequence() -> None:
    """0.866 is beyond 1 - 3e-4: with A = -1 neither token has a gradient; each costs 0.9997."""
    loss = policy_loss(
        SEGMENTS,
        OLD,
        tokens(-1, -1, 0),
        variant="gspo",
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="sequence",
    )
    value, gradient = value_and_gradient(loss, NEW)
    assert value == pytest.approx(0.9997 / 2)
    assert gradient == [0, 0, 0]
    assert metrics_of(loss, NEW)["clip_fraction_low"] == pytest.approx(1 / 2)


def test_cispo_by_hand() -> None:
    """-clip(r) A log p: gradients -1.2, -0.8 and 1.2 x 2 = 2.4 whatever the advantage's sign;
    values times log p = -1 + ln 1.5, -2 - ln 2, -3 + ln 2."""
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, variant="cispo")
    value, gradient = value_and_gradient(loss, NEW)
    assert gradient == pytest.approx([-1.2 / 3, -0.8 / 3, 2.4 / 3])
    by_hand = -1.2 * (-1 + math.log(1.5)) - 0.8 * (-2 - math.log(2)) + 2.4 * (-3 + math.log(2))
    assert value == pytest.approx(by_hand / 3)
    metrics = metrics_of(loss, NEW)
    assert metrics["clip_fraction_low"] == pytest.approx(1 / 3)
    assert metrics["clip_fraction_high"] == pytest.approx(2 / 3)


def test_importance_weights_multiply_the_policy_term_only() -> None:
    """Losses -1.2, -0.5 and 4, weighed 2, 0.5 and 0.25; the penalty is as without."""
    weights = tokens(2, 0.5, 0.25)
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, reference=OLD, weights=weights, kl_coef=0.1)
    value, _ = value_and_gradient(loss, NEW)
    assert value == pytest.approx((-2.4 - 0.25 + 1 + 0.1 * k3(NEW, OLD).sum().item()) / 3)


def test_the_penalty_pushes_towards_the_reference() -> None:
    """No advantages: the gradient is kl_coef d / 3, d = ln 1.5, -ln 2, ln 2."""
    loss = policy_loss(SEGMENTS, OLD, torch.zeros_like(OLD), reference=OLD, kl_coef=0.1)
    _, gradient = value_and_gradient(loss, NEW)
    by_hand = [0.1 * math.log(r) / 3 for r in (1.5, 0.5, 2)]
    assert gradient == pytest.approx(by_hand)


def test_the_entropy_bonus_by_hand() -> None:
    """2.3 / 3 as above, - 0.01 x (0.5 + 1 + 1.5) / 3; its gradient is -0.01 / 3 per token."""
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, entropy_coef=0.01, has_entropy=True)
    entropy = tokens(0.5, 1, 1.5).requires_grad_()
    terms = terms_of(loss, NEW.clone().requires_grad_(), entropy)
    (terms.total / terms.weight).backward()
    assert (terms.total / terms.weight).item() == pytest.approx(2.3 / 3 - 0.01)
    assert entropy.grad is not None
    assert entropy.grad.tolist() == pytest.approx([-0.01 / 3] * 3)
    assert metrics_of(loss, NEW, entropy.detach())["entropy"] == pytest.approx(1)


def test_a_bonus_without_a_gradient_is_refused() -> None:
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, entropy_coef=0.01, has_entropy=True)
    with pytest.raises(AssertionError):
        terms_of(loss, NEW.clone().requires_grad_(), tokens(0.5, 1, 1.5))


def test_masked_tokens_count_nowhere() -> None:
    """Without token 2 the tokens' mean is (-1.2 + 4) / 2, and so is that of the sequences. Without
    token 3, the second sequence does not count: -1.7 / 2 and -0.85 / 1."""
    for aggregation in ("token", "sequence"):
        assert masked(aggregation, [True, False, True]) == pytest.approx(2.8 / 2)
        assert masked(aggregation, [True, True, False]) == pytest.approx(-0.85)
    assert masked("constant", [True, True, False], max_tokens=10) == pytest.approx(-0.17)


def masked(aggregation: str, mask: list[bool], **settings: Any) -> float:
    loss = policy_loss(
        SEGMENTS,
        OLD,
        ADVANTAGES,
        mask=torch.tensor(mask),
        aggregation=aggregation,
        **settings,
    )
    return value_and_gradient(loss, NEW)[0]


def test_a_step_without_a_token_left_has_no_weight() -> None:
    terms = terms_of(policy_loss(SEGMENTS, OLD, ADVANTAGES, mask=torch.zeros(3).bool()), NEW)
    assert terms.total.item() == terms.weight.item() == 0


def test_the_metrics_by_hand() -> None:
    """Ratios 1.5, 0.5, 2: mean 4 / 3; k1 = -mean of their logarithms, -ln 1.5 / 3; k3 = mean of
    ratio - 1 - log = 1/3 - ln 1.5 / 3. Above 1.2 with A > 0: token 1; below 0.8 with A < 0: none.
    Against a reference e times as likely everywhere: d = ln r - 1."""
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, reference=OLD + 1)
    assert metrics_of(loss, NEW) == pytest.approx(
        {
            "policy_loss": 2.3 / 3,
            "ratio": 4 / 3,
            "approx_kl": (1 - math.log(1.5)) / 3,
            "approx_kl_k1": -math.log(1.5) / 3,
            "clip_fraction_low": 0,
            "clip_fraction_high": 1 / 3,
            "kl": k3(NEW, OLD + 1).mean().item(),
            "kl_k1": math.log(1.5) / 3 - 1,
        }
    )


VARIANTS = ("ppo", "gspo", "cispo")


@pytest.mark.parametrize("variant", VARIANTS)
def test_before_the_first_update_the_ratio_is_exactly_1(variant: str) -> None:
    """In fp32: no token is clipped, nothing has moved, the gradient is that of -A log p."""
    segments = segments_of(5, 1, 7)
    old, advantages = normal(0, 13).float(), normal(1, 13).float()
    loss = policy_loss(segments, old, advantages, reference=old, variant=variant)
    metrics = metrics_of(loss, old)
    assert metrics.pop("ratio") == 1
    value_told = metrics.pop("policy_loss")
    assert set(metrics.values()) == {0}
    value, gradient = value_and_gradient(loss, old)
    assert value == value_told
    assert gradient == pytest.approx((-advantages / 13).tolist())


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"dual_clip": 1.5, "clip_high": 0.28},
    {"variant": "gspo", "aggregation": "sequence"},
    {"variant": "cispo", "aggregation": "constant", "max_tokens": 8},
    {"aggregation": "sequence", "kl_coef": 0.1, "entropy_coef": 0.02},
)


@given(samples_and_split(), seeds, st.sampled_from(SETTINGS), st.booleans(), st.integers(0, 3))
@examples(max_examples=40)
def test_no_split_changes_loss_gradient_or_metrics(
    split: tuple[Segments, list[list[int]]],
    seed: int,
    settings: dict[str, Any],
    is_masked: bool,
    extra: int,
) -> None:
    """In any order, dealt to any micro batches, fillers among them, filled up by the engine."""
    segments, micro_batches = split
    count = int(segments.offsets[-1])
    numbers = [normal(seed + i, count) for i in range(6)]
    old, new, advantages, reference, weights, entropy = numbers
    loss = policy_loss(
        segments,
        old,
        advantages,
        reference=reference,
        weights=None if is_masked else weights.exp(),
        mask=normal(seed + 9, count) > -0.3 if is_masked else None,
        has_entropy=True,
        **settings,
    )
    whole_logprobs, whole_entropy = new.clone().requires_grad_(), entropy.clone().requires_grad_()
    whole = terms_of(loss, whole_logprobs, whole_entropy)
    whole.total.backward()

    logprobs, entropies = new.clone().requires_grad_(), entropy.clone().requires_grad_()
    parts = []
    for samples in micro_batches:
        batch = batch_of(segments, samples)
        output = policy_output(batch, segments, logprobs, entropies)
        filled = Output(
            torch.nn.functional.pad(output.logprobs, (0, extra)),
            output.is_most_likely,
            None if output.entropy is None else torch.nn.functional.pad(output.entropy, (0, extra)),
        )
        parts.append(loss(filled, targets_of(batch, extra), batch))
        parts[-1].total.backward()
    assert added(parts) == pytest.approx(added([whole]), abs=1e-9)
    assert logprobs.grad is not None
    assert whole_logprobs.grad is not None
    assert torch.allclose(logprobs.grad, whole_logprobs.grad, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS[:2])
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_gradients_are_those_of_the_values(settings: dict[str, Any], aggregation: str) -> None:
    """By differences in fp64. Straight-through parts (gspo, cispo, the penalty) have other
    gradients than their values; they are checked by hand above."""
    segments = segments_of(4, 1, 6)
    loss = policy_loss(segments, normal(0, 11), normal(1, 11), aggregation=aggregation, **settings)
    logprobs = (normal(0, 11) + normal(2, 11, 0.3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: terms_of(loss, x).total, (logprobs,))


@pytest.mark.parametrize(
    "settings",
    [
        {"dual_clip": 3.0, "variant": "gspo"},
        {"aggregation": "constant"},
        {"kl_coef": 0.1},
        {"entropy_coef": 0.1},
    ],
)
def test_a_setting_without_an_effect_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        policy_loss(SEGMENTS, OLD, ADVANTAGES, **settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_stays_finite_when_policies_have_parted(variant: str) -> None:
    """Log-ratios of 1,000 either way."""
    loss = policy_loss(
        SEGMENTS, tokens(-1000, 0, -1000), ADVANTAGES, reference=OLD, variant=variant, kl_coef=0.1
    )
    value, gradient = value_and_gradient(loss, tokens(0, -1000, 0))
    assert math.isfinite(value)
    assert all(map(math.isfinite, gradient))
