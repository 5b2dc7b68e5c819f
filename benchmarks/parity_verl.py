"""The on-policy maths of alignctl and of verl on the same numbers: the largest differences.

verl is no dependency. Install it into a folder of its own (about 300 MB), and name that folder:

    python -m pip install --target verl-env --no-deps verl==0.9.1 ray tensordict omegaconf \
        antlr4-python3-runtime==4.9.3 pyvers orjson codetiming
    python benchmarks/parity_verl.py verl-env        # seconds

verl's own functions run, from that folder, with the torch of this environment. Rows are padded for
it; ours are dealt to two micro batches, the second one first. All is in float64, on seeded random
numbers. Where a gradient exists, it is compared too. Without a folder this says how to get one.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alignctl.algorithms import advantages as adv  # noqa: E402
from alignctl.algorithms import kl, mismatch  # noqa: E402
from alignctl.algorithms.samples import Segments  # noqa: E402
from alignctl.algorithms.value_loss import ValueLoss  # noqa: E402
from tests.algorithms.experience import (  # noqa: E402
    batch_of,
    normal,
    policy_loss,
    policy_output,
    targets_of,
    value_output,
)

TOLERANCE = 1e-6
GROUPS = torch.arange(16) // 4

LENGTHS = torch.tensor([5, 30, 1, 17, 64, 2, 9, 40, 33, 8, 21, 3, 50, 12, 7, 28])
SEGMENTS = Segments.of_lengths(LENGTHS)
COUNT, SAMPLES, LONGEST = int(LENGTHS.sum()), len(LENGTHS), int(LENGTHS.max())
REAL = torch.arange(LONGEST)[None, :] < LENGTHS[:, None]
MASK = REAL.double()

OLD = normal(0, COUNT) - 3
NEW = OLD + normal(1, COUNT, 0.4)
REFERENCE = OLD + normal(2, COUNT, 0.5)
SCORES = normal(3, SAMPLES)
VALUES = normal(4, COUNT)
ADVANTAGES = normal(5, COUNT)
RETURNS = VALUES + normal(6, COUNT)
KEPT = normal(7, COUNT) > -1
KEPT[SEGMENTS.offsets[2] : SEGMENTS.offsets[3]] = False  # a sample of which nothing is left
PADDED_KEPT = KEPT.double().new_zeros(REAL.shape).masked_scatter(REAL, KEPT.double())


@dataclass(frozen=True)
class Row:
    """One comparison: what, under which conversion, and the largest absolute differences."""

    name: str
    note: str
    value: float
    gradient: float | None = None


def main() -> int:
    """Print the table; return 1 if a difference is above the tolerance."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 0  # `make bench` runs this without verl
    folder = Path(sys.argv[1]).resolve()
    if not (folder / "verl").is_dir():
        print(f"{folder} has no verl in it.\n\n{__doc__}", file=sys.stderr)
        return 2
    sys.path.append(str(folder))  # behind this environment's own packages
    warnings.simplefilter("ignore")
    from verl import __version__
    from verl.trainer.ppo import core_algos, rollout_corr_helper
    from verl.utils import torch_functional

    rows = [
        *of_advantages(core_algos, torch_functional),
        *of_penalties(core_algos),
        *of_policy_losses(core_algos),
        *of_value_losses(core_algos),
        *of_mismatch(rollout_corr_helper),
    ]
    print(f"verl {__version__}, {SAMPLES} samples, {COUNT} tokens, float64\n")
    print(f"{'':44}{'value':>9}{'gradient':>10}   conversion")
    for row in rows:
        gradient = "-" if row.gradient is None else f"{row.gradient:.1e}"
        print(f"{row.name:44}{row.value:9.1e}{gradient:>10}   {row.note}".rstrip())
    largest = max(max(row.value, row.gradient or 0.0) for row in rows)
    print(f"\nlargest difference: {largest:.1e}; tolerance {TOLERANCE:.0e}")
    return int(not largest <= TOLERANCE)


def padded(values: Tensor) -> Tensor:
    """Pad numbers of tokens `[N]` as verl has them `[S, longest]`."""
    return values.new_zeros(REAL.shape).masked_scatter(REAL, values)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Compute the largest difference, of numbers of tokens `[N]` or of anything of one shape."""
    theirs = theirs[REAL] if theirs.shape == REAL.shape else theirs
    return (ours - theirs).abs().max().item()


def of_advantages(core: Any, functional: Any) -> Iterator[Row]:
    """Compare rewards, GAE, whitening, and the baselines of groups."""
    at_end = padded(torch.zeros(COUNT, dtype=torch.float64))
    at_end[torch.arange(SAMPLES), LENGTHS - 1] = SCORES
    rewards = adv.token_rewards(SCORES, OLD, REFERENCE, SEGMENTS, kl_coef=0.05)
    theirs = core.compute_rewards(at_end, padded(OLD), padded(REFERENCE), 0.05)
    yield Row("rewards per token", "", difference(rewards, theirs))

    by_sample = "theirs x sqrt(N / (N - 1)): deviation of the sample, not of the population"
    population = (COUNT / (COUNT - 1)) ** 0.5
    for gamma, lam in ((1.0, 0.95), (0.99, 0.9)):
        found, returns = adv.gae(rewards, VALUES, SEGMENTS, gamma=gamma, lam=lam)
        theirs, their_returns = core.compute_gae_advantage_return(
            padded(rewards), padded(VALUES), MASK, gamma, lam
        )
        yield Row(f"GAE({gamma:g}, {lam:g}): returns", "", difference(returns, their_returns))
        apart = difference(adv.whiten(found), theirs * population)
        yield Row(f"GAE({gamma:g}, {lam:g}): whitened advantages", by_sample, apart)
    kept = KEPT.sum().item() / (KEPT.sum().item() - 1)
    apart = difference(
        adv.whiten(ADVANTAGES, KEPT).where(KEPT, 0.0),
        (functional.masked_whiten(padded(ADVANTAGES), PADDED_KEPT) * PADDED_KEPT) * kept**0.5,
    )
    yield Row("whitening of what is not masked", by_sample, apart)

    group = (4 / 3) ** 0.5  # samples in a group, and one fewer
    ids = GROUPS.numpy()
    of_group = "theirs x sqrt(n / (n - 1)), likewise"
    for name, baseline, note, compute, settings in (
        ("GRPO", "group_std", of_group, core.compute_grpo_outcome_advantage, {}),
        (
            "Dr. GRPO",
            "group_mean",
            "",
            core.compute_grpo_outcome_advantage,
            {"norm_adv_by_std_in_grpo": False},
        ),
        ("RLOO", "rloo", "", core.compute_rloo_outcome_advantage, {}),
    ):
        theirs, _ = compute(at_end.clone(), MASK, ids, **settings)
        ours = adv.group_advantages(SCORES, GROUPS, baseline).advantages
        apart = difference(SEGMENTS.spread(ours), theirs * (group if note else 1.0))
        yield Row(f"{name}: advantages", note, apart)

    from verl.trainer.config import AlgoConfig

    for gamma in (1.0, 0.98):
        ours = adv.whiten(adv.sum_discounted(rewards, SEGMENTS, gamma))
        theirs, _ = core.compute_reinforce_plus_plus_outcome_advantage(
            padded(rewards), MASK, config=AlgoConfig(gamma=gamma)
        )
        apart = difference(ours, theirs * population)
        yield Row(f"REINFORCE++ by token, gamma {gamma:g}", by_sample, apart)


def of_penalties(core: Any) -> Iterator[Row]:
    """Compare estimators of the KL, their gradients, and the adaptive coefficient."""
    for name, estimate in (("k1", kl.k1), ("k2", kl.k2), ("k3", kl.k3), ("k3+", kl.kl_loss)):
        ours, theirs = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
        mine = estimate(ours, REFERENCE)
        yours = core.kl_penalty(theirs, REFERENCE, name)
        gradient = difference(_gradient(mine.sum(), ours), _gradient(yours.sum(), theirs))
        note = "our kl_loss" if name == "k3+" else ""
        yield Row(f"KL {name}", note, difference(mine, yours), gradient)
    controller = core.AdaptiveKLController(0.02, 6.0, 10_000)
    ours_now, apart = kl.AdaptiveKL(0.02, 6.0, 10_000), 0.0
    for value in (0.0, 3.0, 6.5, 7.0, 40.0):
        controller.update(value, 128)
        ours_now = ours_now.next(value, 128)
        apart = max(apart, abs(ours_now.coef - controller.value))
    yield Row("adaptive KL coefficient, five steps", "", apart)


def of_policy_losses(core: Any) -> Iterator[Row]:
    """Compare clipped losses under every mean, with masks."""
    means: tuple[tuple[str, dict[str, Any]], ...] = (
        ("token-mean", {}),
        ("seq-mean-token-mean", {"aggregation": "sequence"}),
        ("seq-mean-token-sum-norm", {"aggregation": "constant", "max_tokens": LONGEST}),
    )
    for mode, aggregation in means:
        mine = {"dual_clip": 1.2, **aggregation}
        yield _policy(core, f"PPO, dual clip, {mode}", "vanilla", mode, mine, {"clip_ratio_c": 1.2})
    plain = {"clip_ratio_c": 1e9}
    bounds = {"clip_low": 0.2, "clip_high": 0.28}
    yield _policy(core, "PPO, no dual clip", "vanilla", "token-mean", {}, plain)
    yield _policy(
        core, "PPO, clip-higher", "vanilla", "token-mean", bounds, plain | {"clip_ratio_high": 0.28}
    )
    weights = mismatch.truncate_importance_weights(OLD, OLD + normal(8, COUNT, 0.3))
    yield _policy(
        core, "PPO, importance weights", "vanilla", "token-mean", {"weights": weights}, plain
    )
    near = {"clip_low": 0.03, "clip_high": 0.04}
    their_near = {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04}
    for mode, aggregation in means[:2]:
        mine = {"variant": "gspo", **near, **aggregation}
        yield _policy(core, f"GSPO, {mode}", "gspo", mode, mine, their_near)
    yield _policy(core, "CISPO", "cispo", "token-mean", {"variant": "cispo"}, {})


def _policy(
    core: Any, name: str, theirs: str, mode: str, mine: dict[str, Any], settings: dict[str, Any]
) -> Row:
    """Compare value and gradient of one loss."""
    from verl.workers.config import ActorConfig

    is_weighed = "weights" in mine  # a correction weighs tokens or leaves them out
    kept = (KEPT | is_weighed).double()
    loss = policy_loss(SEGMENTS, OLD, ADVANTAGES, mask=None if is_weighed else KEPT, **mine)
    value, gradient = _ours(loss, NEW, policy_output)
    logprobs = NEW.clone().requires_grad_()
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        use_dynamic_bsz=False,
        **{"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, **settings},
    )
    expected, _ = core.get_policy_loss_fn(theirs)(
        padded(OLD),
        padded(logprobs),
        padded(ADVANTAGES),
        kept.new_zeros(REAL.shape).masked_scatter(REAL, kept),
        mode,
        config,
        padded(mine["weights"]) if is_weighed else None,
    )
    apart = difference(gradient, _gradient(expected, logprobs))
    return Row(name, "", abs(value - expected.item()), apart)


def of_value_losses(core: Any) -> Iterator[Row]:
    """Compare the clipped loss of values."""
    for clip in (0.1, 0.5):
        loss = ValueLoss(SEGMENTS, VALUES, RETURNS, KEPT, clip=clip)
        moved = VALUES + normal(9, COUNT, 0.3)
        value, gradient = _ours(loss, moved, value_output)
        values = moved.clone().requires_grad_()
        expected, _ = core.compute_value_loss(
            padded(values), padded(RETURNS), padded(VALUES), PADDED_KEPT, clip
        )
        apart = difference(gradient, _gradient(expected, values))
        yield Row(f"value loss, clip {clip:g}", "", abs(value - expected.item()), apart)


def of_mismatch(helper: Any) -> Iterator[Row]:
    """Compare what trainer and sampler differ by: measures, weights, the band."""
    sampler = OLD + normal(10, COUNT, 0.5)
    measured = mismatch.measure(OLD, sampler)
    theirs = helper.compute_offpolicy_metrics(padded(OLD), padded(sampler), MASK)
    yield Row("mismatch: KL by k1", "", abs(measured.kl_k1 - theirs["kl"]))
    yield Row("mismatch: KL by k3", "", abs(measured.kl - theirs["k3_kl"]))
    for name, threshold in (("truncated weights", 2.0), ("token band", "0.5_2.0")):
        yours, _ = helper.compute_rollout_correction_weights(
            padded(OLD - sampler), MASK, "token", threshold
        )
        mine = mismatch.truncate_importance_weights(OLD, sampler, 2.0)
        if name == "token band":
            mine = mine.where(mismatch.token_mask(OLD, sampler, 0.5, 2.0), 0.0)
        yield Row(f"mismatch: {name}", "", difference(mine, yours))


def _ours(loss: Any, numbers: Tensor, output_of: Callable[..., Any]) -> tuple[float, Tensor]:
    """Compute value and gradient as an engine does: sums over micro batches, divided once."""
    numbers = numbers.clone().requires_grad_()
    terms = []
    for samples in (range(SAMPLES // 2, SAMPLES), range(SAMPLES // 2)):
        batch = batch_of(SEGMENTS, samples)
        terms.append(loss(output_of(batch, SEGMENTS, numbers), targets_of(batch), batch))
    value = torch.stack([each.total for each in terms]).sum()
    value = value / torch.stack([each.weight for each in terms]).sum()
    return value.item(), _gradient(value, numbers)


def _gradient(value: Tensor, by: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, by)
    return found


if __name__ == "__main__":
    sys.exit(main())
