"""What an episode gathers: groups whole and in order, failures counted, refills bounded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from alignctl.algorithms.advantages import group_advantages
from alignctl.data.order import Share
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import RunError
from alignctl.on_policy.sampling import Experience, answer, gather
from alignctl.on_policy.scoring import Judge, Scorer
from alignctl.reporting.phases import Phases
from alignctl.rewards.workers import RuleWorkers
from alignctl.rollouts.samples import Request
from tests.on_policy import scripted
from tests.on_policy.scripted import ScriptedReward, ScriptedSampler

pytestmark = pytest.mark.usefixtures("job")

DENSE = {"source": "dense_only"}


def gathered(
    folder: Path,
    tokenizer: Tokenizer,
    say: scripted.Say,
    *,
    step: int = 0,
    shares: tuple[Share, ...] = (),
    **sections: Any,
) -> tuple[Experience, ScriptedSampler]:
    """An episode of a reward model that counts the tokens of the answer."""
    settings = scripted.config(folder, score=DENSE, **sections)
    sampler = ScriptedSampler(say, tokenizer)
    reward = ScriptedReward(lambda tokens: float(tokens.count(scripted.EOS)) * len(tokens))
    models = scripted.models(settings, sampler, reward)
    data = replace(scripted.prompts(tokenizer), shares=shares)
    return gather(models, Scorer(models, data, None), data, step, Phases()), sampler


def question(request: Request, tokenizer: Tokenizer) -> int:
    """The number of a request's prompt: `3+1=` is 3."""
    return int(tokenizer.decode(request.prompt.tolist()).partition("+")[0])


def test_groups_are_whole_and_in_order(folder: Path, tokenizer: Tokenizer) -> None:
    """Four prompts of two answers; every request has a seed of its own."""
    found, sampler = gathered(folder, tokenizer, lambda request, place: f"{place}" * (place + 1))
    ((requests, sampling),) = sampler.calls
    assert [request.group for request in requests] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({request.seed for request in requests}) == 8
    assert sampling.stop_token_ids == (scripted.EOS,)
    assert (sampling.temperature, sampling.max_new_tokens) == (1.0, 16)
    samples = found.samples
    assert samples.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(samples.prompts[::2].tolist())) == 4
    assert samples.prompts[::2].tolist() == samples.prompts[1::2].tolist()
    assert [question(request, tokenizer) for request in requests] == samples.prompts.tolist()
    assert samples.lengths.tolist() == [1, 2] * 4
    assert not samples.is_finished.any()
    assert found.metrics == {"requests_retried": 0, "requests_failed": 0}


def test_an_episode_follows_from_the_seed_and_its_number(
    folder: Path, tokenizer: Tokenizer
) -> None:
    def asked(step: int, **sections: Any) -> list[tuple[int, int]]:
        _, sampler = gathered(folder, tokenizer, lambda *_: "1.", step=step, **sections)
        return [(question(each, tokenizer), each.seed) for each in sampler.calls[0][0]]

    first = asked(0)
    assert asked(0) == first
    assert not {seed for _, seed in asked(1)} & {seed for _, seed in first}
    assert asked(0, train={"seed": 5}) != first
    # Six prompts: the second episode takes the two that are left, and two of the next epoch.
    assert {prompt for prompt, _ in [*first, *asked(1)]} == set(range(6))


def test_episodes_of_a_blend_take_its_shares(folder: Path, tokenizer: Tokenizer) -> None:
    """Three episodes of four are two passes over six prompts, five of each of them the first."""
    shares, asked = (Share(1, 5), Share(5, 1)), []
    for step in range(3):
        found, _ = gathered(folder, tokenizer, lambda *_: "1.", step=step, shares=shares)
        asked += found.samples.prompts[::2].tolist()
    assert (len(asked), asked.count(0), len(set(asked))) == (12, 10, 3)


def test_requests_that_fail_are_counted_and_leave_the_others_in_their_groups(
    folder: Path, tokenizer: Tokenizer
) -> None:
    """One answer of the second group, and both of the third."""

    def say(request: Request, place: int) -> str | None:
        return None if request.group == 2 or (request.group, place) == (1, 0) else f"{place}."

    found, _ = gathered(folder, tokenizer, say)
    assert found.samples.groups.tolist() == [0, 0, 1, 3, 3]
    assert [a[0] - 4 for a in found.samples.answers] == [
        scripted.tokens_of(tokenizer, text)[0] - 4 for text in "01101"
    ]
    assert len(found.scored.scores) == 5
    assert found.metrics == {"requests_retried": 3, "requests_failed": 3}


def test_no_answer_at_all_stops_the_run(folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(RunError, match="none of 8 requests was answered"):
        gathered(folder, tokenizer, lambda *_: None)


REFILLING = {"prompts": 4, "samples": 2, "max_refills": 3}


def test_constant_groups_make_room_for_further_prompts(folder: Path, tokenizer: Tokenizer) -> None:
    """Only prompts 0, 2 and 4 get two different answers; each call asks for what is missing."""

    def say(request: Request, place: int) -> str:
        return "1" * (place + 1) + "." if question(request, tokenizer) % 2 == 0 else "1."

    found, sampler = gathered(folder, tokenizer, say, experience=REFILLING)
    samples, missing, constant, numbers = found.samples, 4, 0, []
    for requests, _ in sampler.calls:
        prompts = [question(each, tokenizer) for each in requests[::2]]
        assert len(prompts) == missing
        numbers += [prompt for prompt in prompts if prompt % 2 == 0]
        constant += sum(prompt % 2 for prompt in prompts)
        missing -= sum(prompt % 2 == 0 for prompt in prompts)
    assert 1 < len(sampler.calls) <= 4
    assert samples.prompts[::2].tolist() == numbers
    assert samples.prompts[1::2].tolist() == numbers
    groups = samples.groups[::2].tolist()
    assert len(set(groups)) == len(groups), "a prompt that is asked again is a group of its own"
    assert samples.groups[1::2].tolist() == groups
    assert found.metrics["prompts_constant"] == constant
    assert found.metrics["prompts_asked"] == sum(len(call) // 2 for call, _ in sampler.calls)
    assert found.scored.scores.tolist() == pytest.approx([7, 8] * len(numbers), abs=1e-4)


def test_refills_end_and_what_there_is_stays(folder: Path, tokenizer: Tokenizer) -> None:
    """Nothing but constant groups: after the first call and three more, the first one's stay."""
    found, sampler = gathered(folder, tokenizer, lambda *_: "1.", experience=REFILLING)
    assert [len(call) for call, _ in sampler.calls] == [8, 8, 8, 8]
    seeds = [request.seed for call, _ in sampler.calls for request in call]
    assert len(set(seeds)) == len(seeds)
    assert found.samples.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.metrics["prompts_constant"] == found.metrics["prompts_asked"] == 16


EIGHT = {"prompts": 2, "samples": 8, "max_refills": 1}


def eight_answers(
    folder: Path, tokenizer: Tokenizer, judges: RuleWorkers, say: scripted.Say, **score: Any
) -> tuple[Experience, ScriptedSampler]:
    """Two prompts of eight answers, judged by the rule; a limit of 24 tokens."""
    settings = scripted.config(
        folder,
        experience=EIGHT,
        rollout={"max_new_tokens": 24},
        score={"source": "sparse_only", **score},
    )
    data, sampler = scripted.prompts(tokenizer), ScriptedSampler(say, tokenizer)
    models = scripted.models(settings, sampler)
    scorer = Scorer(models, data, Judge(tokenizer, judges))
    return gather(models, scorer, data, 0, Phases()), sampler


def least_advantage(found: Experience) -> float:
    rewards, groups = found.scored.rewards, found.samples.groups
    compared = group_advantages(torch.from_numpy(rewards), torch.from_numpy(groups), "group_std")
    return compared.advantages.min().item()


@pytest.mark.parametrize("is_right", [False, True])
def test_a_penalty_alone_teaches_nothing_where_constant_groups_are_replaced(
    folder: Path, tokenizer: Tokenizer, judges: RuleWorkers, is_right: bool
) -> None:
    """Answers of 8 and one of 9 tokens: (24 - 16 - 9) / 16 = -0.0625 for the long one alone.

    Its advantage would be -sqrt(7) = -2.6458, however small the penalty is: of eight scores, seven
    0 and one -d, the mean is -d / 8 and the deviation sqrt(7) d / 8.
    """

    def say(request: Request, place: int) -> str:
        right = question(request, tokenizer) + 1
        return f"#### {right if is_right else right + 1}{' ' if place == 7 else ''}."

    found, sampler = eight_answers(folder, tokenizer, judges, say, overlong_buffer=16)
    lengths = sorted(len(answer) for answer in found.samples.answers)
    assert lengths == [8] * 14 + [9] * 2
    assert [len(call) for call, _ in sampler.calls] == [16, 16], "all were asked anew"
    assert found.metrics["prompts_constant"] == found.metrics["prompts_asked"] == 4
    assert least_advantage(found) == 0


def test_penalties_count_where_answers_are_worth_different_things(
    folder: Path, tokenizer: Tokenizer, judges: RuleWorkers
) -> None:
    """One is right, one repeats itself: (1, 0, ..., 0, -p) in each group, and nothing is asked."""

    def say(request: Request, place: int) -> str:
        right = question(request, tokenizer) + 1
        return f"{'so so so so ' if place == 7 else ''}#### {right if place == 0 else 77}."

    found, sampler = eight_answers(folder, tokenizer, judges, say, ngram_coef=1.0)
    assert len(sampler.calls) == 1
    assert found.scored.scores.tolist() == [1.0, 0, 0, 0, 0, 0, 0, 0] * 2
    assert found.metrics["prompts_constant"] == 0
    penalties = found.scored.extra.reshape(2, 8)
    assert (penalties[:, 7] < penalties[:, 1]).all()
    assert found.scored.metrics["penalty"] == pytest.approx(penalties.mean())


def test_validation_takes_the_likeliest_tokens_once(folder: Path, tokenizer: Tokenizer) -> None:
    settings = scripted.config(folder, rollout={"max_new_tokens": 16, "top_p": 0.9})
    sampler = ScriptedSampler(lambda *_: "1.", tokenizer)
    data = scripted.prompts(tokenizer)
    samples, counts = answer(
        scripted.models(settings, sampler), data, data.validation, seed=(0,), is_greedy=True
    )
    ((requests, sampling),) = sampler.calls
    assert samples.prompts.tolist() == [6, 7]
    assert len(requests) == 2
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)
    assert counts == (0, 0)
    assert samples.is_finished.all()
    assert np.concatenate(samples.answers)[-1] == scripted.EOS


def test_a_temperature_of_zero_is_refused(folder: Path) -> None:
    """The trainer divides by it, and answers that never differ teach nothing."""
    with pytest.raises(ValidationError, match=r"rollout\.temperature 0: every answer would be"):
        scripted.config(folder, rollout={"max_new_tokens": 16, "temperature": 0.0})
