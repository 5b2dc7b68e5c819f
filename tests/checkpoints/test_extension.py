"""A model with more rows in its vocabulary: what is new, what is not, what transformers says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.extension import extend_vocabulary
from alignctl.checkpoints.find import find
from tests import tiny


@pytest.mark.parametrize("family", ["llama-gqa", "bloom"])
def test_new_rows_are_means_and_the_old_ones_stay_in_transformers_too(
    tmp_path: Path, family: tiny.Family
) -> None:
    """A tied table grows once; an output layer of its own grows beside the embedding."""
    tiny.write_model(tmp_path / "hf", family)
    source = extend_vocabulary(find(tmp_path / "hf"), 7)
    assert source.model.vocab_size == tiny.VOCABULARY + 7
    assert f"vocabulary {tiny.VOCABULARY} -> {tiny.VOCABULARY + 7}" in source.description
    (tmp_path / "grown").mkdir()
    convert(source, tmp_path / "grown", Target("hf"))

    config = json.loads((tmp_path / "grown/config.json").read_text())
    before = json.loads((tmp_path / "hf/config.json").read_text())
    assert config == before | {"vocab_size": tiny.VOCABULARY + 7}
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    new, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "grown", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for each in ("get_input_embeddings", "get_output_embeddings"):
        table, grown = getattr(old, each)().weight, getattr(new, each)().weight
        assert torch.equal(grown[: tiny.VOCABULARY], table)
        mean = table.double().mean(dim=0).float()
        assert torch.equal(grown[tiny.VOCABULARY :], mean.expand(7, -1))
    tokens = torch.tensor([[5, 60, 200]])
    with torch.no_grad():
        ours, theirs = new(tokens).logits, old(tokens).logits
    assert torch.allclose(ours[..., : tiny.VOCABULARY], theirs, atol=1e-6)
    assert torch.allclose(ours[..., tiny.VOCABULARY :], theirs.mean(-1, keepdim=True), atol=1e-6)


def test_nothing_is_added_to_a_model_that_is_to_stay_as_it_is(tmp_path: Path) -> None:
    source = find(tiny.write_model(tmp_path / "hf"))
    assert extend_vocabulary(source, 0) is source
