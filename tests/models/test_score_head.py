"""The heads of reward models: float32 whatever they are stored in, and a new one to begin with."""

import pytest
import torch

from alignctl.config.sections import Head
from alignctl.models.score_head import new_weights, score_head
from tests.checkpoints.folders import architecture


@pytest.mark.parametrize("head", ["linear", "pooler"])
def test_scores_are_computed_in_float32_from_bf16(head: Head) -> None:
    """What bf16 cannot tell apart, 1 + 2^-9, stays apart."""
    made = score_head(head, 8, device="cpu", dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(1.0)
        hidden = torch.ones(2, 8)
        hidden[1, 0] += 2**-9
        scores = made(hidden)
    assert scores.dtype == torch.float32
    assert scores[1].item() > scores[0].item()


def test_a_new_head_is_a_function_of_its_seed() -> None:
    """N(0, 1 / (H + 1)), biases 0: hidden states of variance 1 give scores of variance near 1."""
    model = architecture("llama2").model_copy(update={"hidden_size": 255})
    first, again, other = (new_weights("pooler", model, seed=seed) for seed in (1, 1, 2))
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)
    matrix = first["pooler_head.dense1.weight"]
    assert not matrix.equal(other["pooler_head.dense1.weight"])
    assert matrix.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert not first["pooler_head.dense1.bias"].any()
