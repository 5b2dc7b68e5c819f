from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alignctl.config.rollout import Rollout as Settings
from alignctl.rollouts.samples import (
    Completion,
    Finish,
    Request,
    Sampling,
    deal_groups,
    pack,
    unpack,
)

BITS = st.integers(-(2**31), 2**31 - 1)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    length = draw(st.integers(1, 9))
    tokens, bits = (draw(arrays(np.int32, length, elements=BITS)) for _ in range(2))
    finishes: tuple[Finish, ...] = ("stop", "length")
    return Completion(tokens, bits.view(np.float32), draw(st.sampled_from(finishes)))


@given(found=st.dictionaries(st.integers(0, 2**31 - 1), completions(), max_size=6))
def test_packing_keeps_every_bit(found: dict[int, Completion]) -> None:
    """NaNs and infinities among the log-probabilities too."""
    back = unpack(pack(found))
    assert list(back) == list(found)
    for place, each in found.items():
        assert back[place].finish == each.finish
        assert back[place].tokens.tolist() == each.tokens.tolist()
        assert back[place].logprobs.view(np.int32).tolist() == each.logprobs.view(np.int32).tolist()


@given(
    groups=st.lists(st.integers(0, 5), max_size=30),
    lengths=st.lists(st.integers(1, 40), min_size=6, max_size=6),
    num_replicas=st.integers(1, 5),
)
def test_every_request_goes_to_one_replica_and_groups_stay_whole(
    groups: list[int], lengths: list[int], num_replicas: int
) -> None:
    """As many groups to each replica, give or take one; a group's requests follow each other."""
    requests = [Request(np.zeros(lengths[g], np.int32), seed=0, group=g) for g in groups]
    hands = deal_groups(requests, Sampling(8, (2,)), num_replicas)
    assert len(hands) == num_replicas
    assert sorted(place for hand in hands for place in hand) == list(range(len(groups)))
    dealt = [list(dict.fromkeys(groups[place] for place in hand)) for hand in hands]
    assert sorted(group for hand in dealt for group in hand) == sorted(set(groups))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for hand in hands:
        in_order = [groups[place] for place in hand]
        changes = sum(a != b for a, b in pairwise(in_order))
        assert changes == max(len(set(in_order)) - 1, 0)


def test_a_long_prompt_balances_two_short_ones() -> None:
    """Each group is worth its prompt and 1 x 4 tokens: 34 beside 9, 14 beside 8."""
    requests = [
        Request(np.zeros(length, np.int32), seed=0, group=group)
        for group, length in enumerate([30, 4, 5, 10])
    ]
    assert deal_groups(requests, Sampling(4, (2,)), 2) == [[0, 1], [2, 3]]


def test_sampling_is_what_the_configuration_says() -> None:
    settings = Settings(max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=3)
    assert Sampling.of(settings, [2, 5]) == Sampling(7, (2, 5), 0.5, 0.9, 3)
