"""The Bradley-Terry loss: values by hand, TRL's own, and no dependence on how it is split."""

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given

from alignctl.algorithms.loss import LossTerms, Scores
from alignctl.algorithms.reward import BradleyTerry, report
from alignctl.data.batch import PreferenceBatch
from tests.algorithms.preferences import (
    Answer,
    added,
    batch_of,
    groups_and_split,
    numbered,
    reward_output,
)

UNUSED = torch.zeros(0)


def softplus(value: float) -> float:
    """log(1 + e^x) = -log sigmoid(-x)."""
    return math.log1p(math.exp(value))


def sums_of(loss: BradleyTerry, batch: PreferenceBatch, scores: list[float]) -> dict[str, float]:
    return added([loss(reward_output(batch, scores), UNUSED, batch)])


def test_a_pair_by_hand() -> None:
    """Scores 1.5 and -0.5 with 2 and 4 tokens: -log sigmoid(2) = log(1 + e^-2) = 0.126928."""
    batch = batch_of(numbered([(2, 1.0), (4, 0.0)]))
    found = sums_of(BradleyTerry(), batch, [1.5, -0.5])
    assert found["total"] == pytest.approx(0.126928, abs=1e-6)
    assert found["weight"] == 1
    assert (found["accuracy"], found["margin"]) == (1, 2)
    assert (found["answers"], found["score"], found["score_squared"]) == (2, 1, 2.5)
    assert (found["tokens"], found["tokens_squared"], found["score_tokens"]) == (6, 20, 1)
    assert (found["pairs_above_2"], found["right_above_2"], found["pairs_1_to_2"]) == (1, 1, 0)


def test_every_strictly_ordered_pair_of_a_prompt_shares_its_weight() -> None:
    """Scores 3, 1, 2, 1 against rewards 1, 0, 0.5, 2. Pairs and differences: (3, 1) 1 and -1,
    (3, 2) 0.5, (2, 1) 0.5 and -1.5; the two 1s are a tie. Their mean, and three of five right."""
    batch = batch_of(numbered([(1, 3.0), (1, 1.0), (1, 2.0), (1, 1.0)]))
    found = sums_of(BradleyTerry(), batch, [1.0, 0.0, 0.5, 2.0])
    differences = [1, -1, 0.5, 0.5, -1.5]
    assert found["total"] == pytest.approx(sum(softplus(-d) for d in differences) / 5)
    assert found["weight"] == 1
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["margin"] == pytest.approx(sum(differences) / 5)
    assert found["pairs_0.5_to_1"] == pytest.approx(2 / 5)
    assert found["right_1_to_2"] == pytest.approx(1 / 5)


def test_fractions_order_answers_too() -> None:
    """As integers, 0.7 and 0.2 would tie."""
    batch = batch_of(numbered([(1, 0.2), (1, 0.7)]))
    assert sums_of(BradleyTerry(), batch, [0.0, 1.0])["total"] == pytest.approx(softplus(-1))


def test_prompts_with_ties_only_weigh_nothing() -> None:
    batch = batch_of(numbered([(1, 1.0), (1, 1.0)], [(1, 5.0)], [(1, 1.0), (1, 0.0)]))
    found = sums_of(BradleyTerry(), batch, [9.0, 8.0, 7.0, 0.0, 0.0])
    assert found["weight"] == 1
    assert found["total"] == pytest.approx(math.log(2))
    assert found["accuracy"] == 0.5


def test_the_margin_grows_with_the_difference_of_the_scores() -> None:
    """Scores 5 and 2 at a margin of 0.5 each: -log sigmoid(1 - 1.5)."""
    batch = batch_of(numbered([(1, 5.0), (1, 2.0)]))
    found = sums_of(BradleyTerry(margin=0.5), batch, [1.0, 0.0])
    assert found["total"] == pytest.approx(softplus(0.5))


def test_centering_punishes_the_square_of_the_sum() -> None:
    """0.01 x (3 + 1)^2 = 0.16 on top of log(1 + e^-2)."""
    batch = batch_of(numbered([(1, 1.0), (1, 0.0)]))
    found = sums_of(BradleyTerry(centering=0.01), batch, [3.0, 1.0])
    assert found["total"] == pytest.approx(softplus(-2) + 0.16)


def test_large_differences_stay_finite() -> None:
    """log(1 + e^x) as it is written overflows fp32 at x = 89."""
    batch = batch_of(numbered([(1, 1.0), (1, 0.0)]))
    output = reward_output(batch, [0.0, 1000.0])
    terms = BradleyTerry()(output._replace(scores=output.scores.float()), UNUSED, batch)
    assert terms.total.item() == 1000


def test_a_filler_has_no_weight_and_a_gradient_of_zero() -> None:
    batch = PreferenceBatch.filler()
    output = reward_output(batch, [1.0])
    terms = BradleyTerry(centering=1.0)(output, UNUSED, batch)
    terms.total.backward()
    assert (terms.total.item(), terms.weight.item()) == (0, 0)
    assert output.scores.grad is not None
    assert output.scores.grad.tolist() == [0]
    assert not any(value.item() for value in terms.metrics.values())


def test_documents_that_fill_the_batch_up_are_not_looked_at() -> None:
    """Sequence parallelism may add one, whose score means nothing."""
    batch = batch_of(numbered([(2, 1.0), (4, 0.0)]))
    output = reward_output(batch, [1.5, -0.5])
    longer = Scores(torch.cat([output.scores, torch.tensor([float("nan")])]))
    loss = BradleyTerry(centering=1.0)
    assert added([loss(longer, UNUSED, batch)]) == added([loss(output, UNUSED, batch)])


def test_the_metrics_are_those_that_are_announced() -> None:
    batch = batch_of(numbered([(1, 1.0), (1, 0.0)]))
    terms = BradleyTerry()(reward_output(batch, [0.0, 0.0]), UNUSED, batch)
    assert tuple(terms.metrics) == BradleyTerry.metric_names


def test_a_report_has_mean_deviation_and_correlation_of_all_answers() -> None:
    """numpy over four answers; all sums divided by the weight of 2, as engines do."""
    batch = batch_of(numbered([(2, 1.0), (4, 0.0)], [(3, 0.0), (1, 1.0)]))
    scores = [1.5, -0.25, 0.5, 0.0]
    sums = sums_of(BradleyTerry(), batch, scores)
    found = report({name: value / sums["weight"] for name, value in sums.items()})
    assert found["score_mean"] == pytest.approx(np.mean(scores))
    assert found["score_std"] == pytest.approx(np.std(scores))
    assert found["length_correlation"] == pytest.approx(np.corrcoef(scores, [2, 4, 3, 1])[0, 1])
    assert found["accuracy"] == 0.5
    assert found["margin"] == pytest.approx((1.75 - 0.5) / 2)
    assert {name: found[name] for name in found if name.startswith("accuracy_")} == {
        "accuracy_0.5_to_1": 0,
        "accuracy_1_to_2": 1,
    }


def test_a_report_of_equal_lengths_has_no_correlation() -> None:
    """Not even one of rounding errors: sums divided by 3 leave a variance of 1e-15."""
    batch = batch_of(numbered([(3, 1.0), (3, 0.0)], [(3, 1.0), (3, 0.5)], [(3, 1.0), (3, 0.0)]))
    sums = sums_of(BradleyTerry(), batch, [0.1, 0.3, 0.7, 0.2, 0.1, 0.9])
    assert report({name: value / 3 for name, value in sums.items()})["length_correlation"] == 0


@given(groups_and_split())
def test_no_order_and_no_split_changes_a_sum_or_a_gradient(
    cases: tuple[list[list[Answer]], list[list[list[Answer]]]],
) -> None:
    groups, parts = cases
    loss = BradleyTerry(margin=0.3, centering=0.1)
    scores = np.random.default_rng(1).normal(size=sum(map(len, groups))).tolist()

    def of(parts: list[list[list[Answer]]]) -> tuple[dict[str, float], dict[int, float]]:
        terms: list[LossTerms] = []
        grads: dict[int, float] = {}
        for part in parts:
            batch = batch_of(part)
            output = reward_output(batch, [*scores, 0.0])
            terms.append(loss(output, UNUSED, batch))
            terms[-1].total.backward()
            assert output.scores.grad is not None
            grads |= dict(zip(batch.rows, output.scores.grad.tolist(), strict=True))
        grads.pop(-1, None)
        return added(terms), grads

    (whole, whole_grads), (split, split_grads) = of([groups]), of(parts)
    assert split == pytest.approx(whole, abs=1e-12)
    assert split_grads == pytest.approx(whole_grads, abs=1e-12)


@pytest.mark.parametrize(("margin", "centering"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.01)])
def test_loss_and_gradient_are_those_of_trl(margin: float, centering: float) -> None:
    """TRL's method on the same fp32 scores, its `margin` column being our margin x (1 - 0)."""
    from trl.trainer.reward_trainer import RewardTrainer

    pairs = 7
    values = torch.randn(2, pairs, generator=torch.Generator().manual_seed(3)) * 3
    theirs = values.flatten()[:, None].clone().requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(center_rewards_coefficient=centering),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"margin": torch.full((pairs,), margin)}
    expected = RewardTrainer.compute_loss(
        trainer, lambda **_: SimpleNamespace(logits=theirs), inputs
    )
    expected.backward()

    batch = batch_of(numbered(*[[(1, 1.0), (1, 0.0)]] * pairs))
    ours = values.T.flatten().clone().requires_grad_()
    output = reward_output(batch, [0.0] * 2 * pairs)._replace(scores=ours)
    terms = BradleyTerry(margin, centering)(output, UNUSED, batch)
    (terms.total / terms.weight).backward()
    assert terms.total.item() / terms.weight.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad.view(pairs, 2).T.flatten(), theirs.grad[:, 0], atol=1e-6)
    accuracy = terms.metrics["accuracy"].item() / pairs
    assert accuracy == pytest.approx(trainer._metrics["eval"]["accuracy"][0])
