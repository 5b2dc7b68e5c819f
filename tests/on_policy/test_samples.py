"""Answers as numbers of one episode: chosen, joined, dealt to ranks; nothing is lost on the way."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.batch import IGNORE, TokenBatch
from alignctl.data.tokenizer import Tokenizer
from alignctl.on_policy.samples import Samples
from tests.on_policy import scripted


@st.composite
def episodes(draw: st.DrawFn) -> Samples:
    """Up to nine answers of one to five tokens, each token and log-probability different."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=9))
    count = sum(answer for _, answer in shapes)
    ids = np.arange(count, dtype=np.int32)
    edges = np.cumsum([answer for _, answer in shapes])[:-1]
    return Samples(
        prompts=np.arange(len(shapes)) * 10,
        groups=np.arange(len(shapes)) // 2,
        questions=[np.full(question, 1000 + n, np.int32) for n, (question, _) in enumerate(shapes)],
        answers=np.split(ids, edges),
        logprobs=-ids.astype(np.float64),
        is_finished=np.arange(len(shapes)) % 2 == 0,
    )


def learned(batch: TokenBatch) -> list[int]:
    targets: list[int] = batch.targets[batch.targets != IGNORE].tolist()
    return targets


@given(episodes(), st.data())
def test_chosen_answers_keep_all_that_belongs_to_them(
    samples: Samples, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(samples))), min_size=1, unique=True))
    found = samples.select(chosen)
    assert len(found) == len(chosen)
    assert found.prompts.tolist() == [10 * each for each in chosen]
    assert np.concatenate(found.answers).tolist() == (-found.logprobs).tolist()
    assert [q[0] - 1000 for q in found.questions] == chosen
    assert found.is_finished.tolist() == [each % 2 == 0 for each in chosen]
    assert found.segments.lengths.tolist() == found.lengths.tolist()


@given(episodes(), st.data())
def test_parts_joined_are_the_whole(samples: Samples, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(samples)))
    parts = [list(range(cut)), list(range(cut, len(samples)))]
    found = Samples.join([samples.select(part) for part in parts if part])
    assert found.logprobs.tolist() == samples.logprobs.tolist()
    assert found.groups.tolist() == samples.groups.tolist()
    assert [a.tolist() for a in found.answers] == [a.tolist() for a in samples.answers]


def test_what_ended_an_answer_is_not_said_and_is_scored_as_eos(tokenizer: Tokenizer) -> None:
    """The first ended with EOS, the second with another end token, the third was cut."""
    samples = scripted.samples(tokenizer, (0, 1, "2."), (0, 1, "3."), (1, 4, "5"))
    last = samples.answers[2].tolist()
    samples.answers[1][-1] = 87
    assert samples.said(0) == scripted.tokens_of(tokenizer, "2.")
    assert samples.said(1) == scripted.tokens_of(tokenizer, "3.")
    assert samples.said(2) == last
    ended = samples.end_by(scripted.EOS)
    assert [answer[-1] for answer in ended.answers] == [scripted.EOS, scripted.EOS, last[-1]]
    assert samples.answers[1][-1] == 87, "what the policy learns from stays as it was sampled"


@given(episodes(), st.integers(1, 4), st.integers(1, 3), st.data())
def test_micro_batches_of_all_ranks_hold_every_answer_once(
    samples: Samples, size: int, num_ranks: int, data: st.DataObject
) -> None:
    """As many on every rank; each learned target is an answer's token, and no other token is."""
    part = data.draw(st.lists(st.sampled_from(range(len(samples))), min_size=1, unique=True))
    hands = [
        samples.batches(part, micro_batch_size=size, dp_rank=rank, dp_size=num_ranks)
        for rank in range(num_ranks)
    ]
    assert len({len(hand) for hand in hands}) == 1
    rows = [row for hand in hands for batch in hand for row in batch.rows if row >= 0]
    assert sorted(rows) == sorted(part)
    assert all(len(batch.rows) <= size for hand in hands for batch in hand)
    targets = [target for hand in hands for batch in hand for target in learned(batch)]
    assert sorted(targets) == sorted(np.concatenate([samples.answers[n] for n in part]).tolist())


@given(episodes(), st.integers(1, 4), st.integers(1, 3), st.data())
def test_answers_to_one_prompt_stay_together_where_it_is_shared(
    samples: Samples, size: int, num_ranks: int, data: st.DataObject
) -> None:
    """As many micro batches as without sharing, none larger; a prompt is in neighbouring ones."""
    part = data.draw(st.lists(st.sampled_from(range(len(samples))), min_size=1, unique=True))
    prompts = data.draw(st.lists(st.integers(0, 2), min_size=len(samples), max_size=len(samples)))
    questions = [samples.questions[prompt % len(samples)] for prompt in prompts]
    samples = replace(samples, prompts=np.asarray(prompts), questions=questions)
    share = {"micro_batch_size": size, "dp_size": num_ranks}
    apart, together = (
        [
            samples.batches(part, dp_rank=rank, share_prompts=share_prompts, **share)
            for rank in range(num_ranks)
        ]
        for share_prompts in (False, True)
    )
    assert [len(hand) for hand in together] == [len(hand) for hand in apart]
    batches = [batch for hand in together for batch in hand]
    assert all(len(batch.rows) <= size for batch in batches)
    assert sorted(row for batch in batches for row in batch.rows if row >= 0) == sorted(part)
    whole = sum(batch.num_document_tokens for batch in batches if batch.rows != (-1,))
    assert whole == sum(samples.tokens(sample) - 1 for sample in part)
    homes = Counter(p for b in batches for p in {prompts[row] for row in b.rows if row >= 0})
    least = len(part) // len(batches)  # answers in the smallest of them
    for prompt, count in homes.items():
        answers = sum(prompts[sample] == prompt for sample in part)
        assert count <= 2 + (answers - 2) // least if least else count <= answers


@given(episodes(), st.integers(1, 4))
def test_where_every_prompt_has_one_answer_there_is_nothing_to_keep_together(
    samples: Samples, size: int
) -> None:
    """Answers are dealt one by one, which balances ranks best."""
    apart, together = (
        samples.batches(
            range(len(samples)),
            micro_batch_size=size,
            dp_rank=1,
            dp_size=2,
            share_prompts=share_prompts,
        )
        for share_prompts in (False, True)
    )
    assert [batch.rows for batch in together] == [batch.rows for batch in apart]


@given(episodes(), st.integers(1, 3))
def test_a_reward_model_reads_the_last_token_too(samples: Samples, num_ranks: int) -> None:
    inputs: dict[int, list[int]] = {}
    for rank in range(num_ranks):
        hand = samples.scored_batches(micro_batch_size=2, dp_rank=rank, dp_size=num_ranks)
        for batch in hand:
            for document, row in enumerate(batch.rows):
                start, end = batch.pieces.boundaries[document : document + 2]
                inputs[row] = batch.tokens[start:end].tolist()
    for sample in range(len(samples)):
        whole = [*samples.questions[sample], *samples.answers[sample]]
        assert inputs[sample] == whole


@given(episodes(), st.integers(9, 30), st.integers(1, 3), st.booleans())
def test_a_budget_holds_for_what_each_model_reads(
    samples: Samples, most: int, num_ranks: int, share_prompts: bool
) -> None:
    """A reward model reads nine tokens of the longest question and answer, a policy eight."""
    samples = replace(samples, prompts=samples.groups, questions=[samples.questions[0]] * 9)
    limits: dict[str, Any] = {"micro_batch_size": 1, "micro_batch_tokens": most}
    limits |= {"dp_size": num_ranks, "share_prompts": share_prompts}
    every = range(len(samples))
    for hands in (
        [samples.batches(every, dp_rank=rank, **limits) for rank in range(num_ranks)],
        [samples.scored_batches(dp_rank=rank, **limits) for rank in range(num_ranks)],
    ):
        assert len({len(hand) for hand in hands}) == 1
        batches = [batch for hand in hands for batch in hand]
        assert all(batch.num_tokens <= most for batch in batches)
        assert sorted(row for b in batches for row in b.rows if row >= 0) == list(every)


def test_equal_answers_to_one_prompt_are_found(tokenizer: Tokenizer) -> None:
    """Of one prompt in two groups too; not the same answer to another prompt, nor one cut short."""
    found = scripted.samples(
        tokenizer, (0, 7, "8."), (0, 7, "9."), (0, 7, "8."), (1, 3, "8."), (2, 7, "8."), (2, 7, "8")
    )
    distinct, places = found.distinct
    assert distinct == [0, 1, 3, 5]
    assert places.tolist() == [0, 1, 0, 2, 0, 3]
