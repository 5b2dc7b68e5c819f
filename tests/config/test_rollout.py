import pytest
from pydantic import ValidationError

from alignctl.config.rollout import Rollout
from tests import tiny

MODEL = tiny.architecture(hidden_size=96, num_attention_heads=6)


def problems(settings: Rollout, *, world_size: int = 4) -> list[str]:
    return settings.problems(MODEL, seq_length=64, world_size=world_size)


def test_what_fits_has_no_problems() -> None:
    assert problems(Rollout(tp=2, max_new_tokens=63)) == []


def test_completions_leave_room_for_a_prompt() -> None:
    (problem,) = problems(Rollout(max_new_tokens=64))
    assert "rollout.max_new_tokens 64 is not less than batch.seq_length 64" in problem


def test_the_rollouts_own_tp_divides_processes_heads_and_groups() -> None:
    """4 query heads' groups of 2 cannot be cut in 3; 6 heads and 4 processes: the latter not."""
    found = problems(Rollout(tp=3, max_new_tokens=8))
    assert found == [
        "4 processes are not a multiple of rollout.tp 3",
        "model.num_query_groups 2 is not divisible by rollout.tp 3",
        "model.ffn_hidden_size 160 is not divisible by rollout.tp 3",
    ]


def test_what_has_no_effect_or_no_room_is_refused() -> None:
    (greedy,) = problems(Rollout(max_new_tokens=8, temperature=0.0, top_p=0.9))
    assert "have no effect at rollout.temperature 0" in greedy
    (crowded,) = problems(Rollout(max_new_tokens=8, max_num_seqs=9, max_num_batched_tokens=8))
    assert "max_num_batched_tokens 8 is less than rollout.max_num_seqs 9" in crowded


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_k": 0}, {"temperature": -1.0}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Rollout.model_validate({"max_new_tokens": 8, **wrong})
