"""Direct preference optimisation: values by hand, TRL's own, and no dependence on the split."""

import math
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignctl.algorithms.dpo import DPO
from alignctl.algorithms.loss import LossTerms, Output
from alignctl.config.sections import DPOLoss, DPOVariant
from alignctl.data.batch import IGNORE, PreferenceBatch
from tests.algorithms.preferences import (
    NOT_MOST_LIKELY,
    Answer,
    added,
    batch_of,
    groups_and_split,
    numbered,
    policy_output,
)

UNUSED = torch.zeros(0)

# A better answer of 2 tokens, -2 in all, that the reference gives -4: its log-ratio is 2; a worse
# one of 4 tokens, -8 in all, that the reference gives -7: -1. So they differ by 3, and by
# 2 / 2 - -1 / 4 = 1.25 per token.
PAIR = numbered([(2, 1.0), (4, 0.0)])
LOGPROBS = [[-0.5, -1.5], [-1.0, -2.0, -4.0, -1.0]]
REFERENCE = np.asarray([-4.0, -7.0], np.float32)


def dpo(reference: NDArray[np.floating], **knobs: Any) -> DPO:
    """The loss by a configuration's settings."""
    return DPO(reference, **DPOLoss(**knobs).model_dump())


def softplus(value: float) -> float:
    """log(1 + e^x) = -log sigmoid(-x)."""
    return math.log1p(math.exp(value))


def loss_of_the_pair(loss: DPO) -> float:
    batch = batch_of(PAIR)
    terms = loss(policy_output(batch, LOGPROBS), UNUSED, batch)
    assert terms.weight.item() == 1
    return terms.total.item()


def test_the_sigmoid_loss_by_hand() -> None:
    """-log sigmoid(0.1 x 3) = log(1 + e^-0.3) = 0.554355."""
    assert loss_of_the_pair(dpo(REFERENCE)) == pytest.approx(0.554355, abs=1e-6)


def test_the_normalised_sigmoid_loss_by_hand() -> None:
    """-log sigmoid(2 x 1.25) = log(1 + e^-2.5) = 0.078889."""
    loss = dpo(REFERENCE, variant="sigmoid_norm", beta=2.0)
    assert loss_of_the_pair(loss) == pytest.approx(0.078889, abs=1e-6)


def test_the_ipo_loss_by_hand() -> None:
    """(1.25 - 1 / (2 x 0.5))^2 = 0.25^2."""
    assert loss_of_the_pair(dpo(REFERENCE, variant="ipo", beta=0.5)) == pytest.approx(0.0625)


def test_smoothing_believes_the_opposite_a_little() -> None:
    """3/4 of log(1 + e^-0.3) and 1/4 of log(1 + e^0.3)."""
    loss = dpo(REFERENCE, label_smoothing=0.25)
    assert loss_of_the_pair(loss) == pytest.approx(0.75 * softplus(-0.3) + 0.25 * softplus(0.3))


def test_the_nll_term_is_that_of_the_better_answer_per_token() -> None:
    """0.5 x 2 / 2 = 0.5 on top."""
    found = loss_of_the_pair(dpo(REFERENCE, nll=0.5))
    assert found == pytest.approx(softplus(-0.3) + 0.5)


def test_the_metrics_are_of_whole_answers() -> None:
    batch = batch_of(PAIR)
    terms = dpo(REFERENCE)(policy_output(batch, LOGPROBS), UNUSED, batch)
    assert {name: value.item() for name, value in terms.metrics.items()} == pytest.approx(
        {
            "accuracy": 1,
            "margin": 0.3,
            "chosen_reward": 0.2,
            "rejected_reward": -0.1,
            "chosen_logprob": -2,
            "rejected_logprob": -8,
        }
    )
    assert tuple(terms.metrics) == dpo(REFERENCE).metric_names


def test_the_terms_of_the_loss_are_told_and_add_up_to_it() -> None:
    batch = batch_of(PAIR)
    loss = dpo(REFERENCE, nll=0.5)
    terms = loss(policy_output(batch, LOGPROBS), UNUSED, batch)
    assert tuple(terms.metrics) == loss.metric_names
    assert terms.metrics["preference_loss"].item() == pytest.approx(softplus(-0.3))
    assert terms.metrics["nll_loss"].item() == pytest.approx(0.5)
    assert terms.total.item() == pytest.approx(softplus(-0.3) + 0.5)


@pytest.mark.parametrize("variant", ["sigmoid", "sigmoid_norm"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_policy_that_is_its_reference_loses_ln_2(variant: DPOVariant, smoothing: float) -> None:
    """Exactly: log-ratios are differences of equal numbers, and sigmoid(0) is a half."""
    batch = batch_of(PAIR)
    loss = dpo(np.asarray([-2.0, -8.0], np.float32), variant=variant, label_smoothing=smoothing)
    terms = loss(policy_output(batch, LOGPROBS), UNUSED, batch)
    assert terms.total.item() == pytest.approx(math.log(2), abs=1e-15)
    assert terms.metrics["margin"].item() == 0
    assert terms.metrics["accuracy"].item() == 0.5


def test_the_gradient_pushes_answers_apart_by_how_wrong_the_order_is() -> None:
    """Equation 8 of the paper: -beta sigmoid(-beta d) for each token of the better answer, and
    the opposite for each of the worse."""
    batch = batch_of(PAIR)
    output = policy_output(batch, LOGPROBS)
    dpo(REFERENCE)(output, UNUSED, batch).total.backward()
    push = 0.1 / (1 + math.exp(0.3))
    assert output.logprobs.grad is not None
    learned = torch.from_numpy(batch.targets != IGNORE)
    assert output.logprobs.grad[learned].tolist() == pytest.approx([-push] * 2 + [push] * 4)


def test_several_answers_to_a_prompt_are_compared_pair_by_pair() -> None:
    """Scores 0, 2, 1 with log-ratios 0, 1, 3: differences 1, -2, 3, a third each."""
    batch = batch_of(numbered([(1, 0.0), (1, 2.0), (1, 1.0)]))
    output = policy_output(batch, [[-1.0], [-1.0], [-1.0]])
    terms = dpo(np.asarray([-1.0, -2.0, -4.0], np.float32), beta=1.0)(output, UNUSED, batch)
    assert terms.total.item() == pytest.approx((softplus(-1) + softplus(2) + softplus(-3)) / 3)
    assert terms.metrics["accuracy"].item() == pytest.approx(2 / 3)
    assert terms.weight.item() == 1


@pytest.mark.parametrize("variant", ["sigmoid", "sigmoid_norm", "ipo"])
def test_a_filler_has_no_weight_and_a_gradient_of_zero(variant: DPOVariant) -> None:
    batch = PreferenceBatch.filler()
    output = Output(torch.zeros(1, requires_grad=True), NOT_MOST_LIKELY)
    terms = dpo(REFERENCE, variant=variant, nll=1.0)(output, UNUSED, batch)
    terms.total.backward()
    assert (terms.total.item(), terms.weight.item()) == (0, 0)
    assert output.logprobs.grad is not None
    assert output.logprobs.grad.tolist() == [0]


@given(groups_and_split(), st.sampled_from(["sigmoid", "sigmoid_norm", "ipo"]))
def test_no_order_and_no_split_changes_a_sum_or_a_gradient(
    cases: tuple[list[list[Answer]], list[list[list[Answer]]]], variant: DPOVariant
) -> None:
    groups, parts = cases
    random = np.random.default_rng(2)
    answers = [answer for group in groups for answer in group]
    logprobs = [(-random.exponential(size=answer.tokens)).tolist() for answer in answers]
    loss = dpo(random.normal(size=len(answers)).astype(np.float32), variant=variant, nll=0.2)

    def of(parts: list[list[list[Answer]]]) -> tuple[dict[str, float], dict[int, list[float]]]:
        terms: list[LossTerms] = []
        grads: dict[int, list[float]] = {}
        for part in parts:
            batch = batch_of(part)
            output = policy_output(batch, [*logprobs, []])
            terms.append(loss(output, UNUSED, batch))
            terms[-1].total.backward()
            assert output.logprobs.grad is not None
            lengths = np.diff(batch.pieces.boundaries).tolist()
            grad = output.logprobs.grad.split(lengths)
            grads |= {row: g.tolist() for row, g in zip(batch.rows, grad, strict=True)}
        grads.pop(-1, None)
        return added(terms), grads

    (whole, whole_grads), (split, split_grads) = of([groups]), of(parts)
    assert split == pytest.approx(whole, abs=1e-12)
    assert split_grads.keys() == whole_grads.keys()
    for row, grad in whole_grads.items():
        assert split_grads[row] == pytest.approx(grad, abs=1e-12)


# Lengths of the better and the worse answers of the pairs that TRL gets too, padded to the longest.
LENGTHS = ((5, 3), (2, 7), (4, 4), (1, 6))
PROMPT, LONGEST = 2, 7


def _trl(
    loss_types: Sequence[str],
    weights: Sequence[float],
    smoothing: float,
    lengths: Sequence[tuple[int, int]],
) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of TRL's own method on padded rows, better answers first; what it was given."""
    from trl.trainer.dpo_trainer import DPOTrainer

    generator = torch.Generator().manual_seed(4)
    flat = [pair[0] for pair in lengths] + [pair[1] for pair in lengths]
    mask = torch.zeros(len(flat), PROMPT + LONGEST, dtype=torch.long)
    for row, length in enumerate(flat):
        mask[row, PROMPT : PROMPT + length] = 1
    logprobs = -torch.rand(mask.shape, generator=generator)[:, 1:] * 4 * mask[:, 1:]
    reference = logprobs.sum(1) + torch.randn(len(flat), generator=generator)
    logprobs.requires_grad_()
    computed = SimpleNamespace(
        log_probs=logprobs,
        entropy=torch.zeros_like(logprobs),
        mean_logits=torch.zeros_like(logprobs),
        is_top1=torch.zeros_like(logprobs, dtype=torch.bool),
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=weights,
        beta=0.3,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": mask,
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: computed, inputs, False)
    loss.backward()
    return loss.item(), logprobs, reference, mask[:, 1:].bool()


@pytest.mark.parametrize(
    ("ours", "theirs", "lengths"),
    [
        ({}, (["sigmoid"], [1.0], 0.0), LENGTHS),
        ({"variant": "sigmoid_norm"}, (["sigmoid_norm"], [1.0], 0.0), LENGTHS),
        ({"variant": "ipo"}, (["ipo"], [1.0], 0.0), LENGTHS),
        # TRL's only loss with plain smoothing sorts its batch first, which leaves one pair as is.
        ({"label_smoothing": 0.2}, (["aot"], [1.0], 0.2), LENGTHS[:1]),
        # TRL weighs better answers by their tokens, the paper does not: equal lengths for both.
        ({"nll": 0.7}, (["sigmoid", "sft"], [1.0, 0.7], 0.0), ((4, 3), (4, 7), (4, 1))),
    ],
    ids=["sigmoid", "sigmoid_norm", "ipo", "smoothing", "nll"],
)
def test_loss_and_gradient_are_those_of_trl(
    ours: dict[str, float],
    theirs: tuple[list[str], list[float], float],
    lengths: Sequence[tuple[int, int]],
) -> None:
    """fp32, without padding here and with it there."""
    expected, padded, reference, mask = _trl(*theirs, lengths)
    pairs = len(lengths)
    # Rows are numbered as TRL has them: the better answers, then the worse ones.
    groups = [
        [Answer(i, lengths[i][0], 1.0), Answer(pairs + i, lengths[i][1], 0.0)] for i in range(pairs)
    ]
    batch = batch_of(groups)
    rows = [padded[row][mask[row]].tolist() for row in range(2 * pairs)]
    logprobs = policy_output(batch, rows).logprobs.detach().float().requires_grad_()
    loss = dpo(reference.numpy(), beta=0.3, **ours)
    terms = loss(Output(logprobs, NOT_MOST_LIKELY), UNUSED, batch)
    (terms.total / terms.weight).backward()

    assert terms.total.item() / pairs == pytest.approx(expected, rel=1e-6)
    assert logprobs.grad is not None
    assert padded.grad is not None
    found = policy_output(batch, [padded.grad[row][mask[row]].tolist() for row in range(2 * pairs)])
    learned = torch.from_numpy(batch.targets != IGNORE)
    assert torch.allclose(logprobs.grad[learned], found.logprobs[learned].float(), atol=1e-6)
