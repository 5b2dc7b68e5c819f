import pytest

from alignctl.config import presets
from alignctl.config.load import load_preset
from alignctl.config.sections import Model

# The counts that the models' own pages give, exact to the last parameter.
PARAMETERS = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
}


def count(model: Model) -> int:
    """Parameters of a model.

    Llama: per layer the query and output matrices (2 h^2), key and value (2 h x groups x head),
    gate, up and down (3 h f) and two norms; embedding, output layer, final norm.
    Bloom: per layer 4 h^2 + 4 h of attention, 8 h^2 + 5 h of feed-forward, two norms of 2 h; the
    embedding once, its norm and the final one.
    """
    h, f, v = model.hidden_size, model.ffn_hidden_size, model.vocab_size
    if model.family == "llama2":
        kv = model.head_dim * model.num_query_groups
        return model.num_layers * (2 * h * h + 2 * h * kv + 3 * h * f + 2 * h) + 2 * v * h + h
    return model.num_layers * (12 * h * h + 13 * h) + v * h + 4 * h


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid(name: str) -> None:
    preset = load_preset(name)
    assert None not in (preset.sft, preset.reward, preset.dpo)
    assert (preset.model.attention_dropout, preset.model.hidden_dropout) == (0, 0)


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_opens_with_a_runbook_of_ascii(name: str) -> None:
    text = (presets.folder() / f"{name}.yaml").read_bytes().decode("ascii")
    header = text[: text.index("\nmodel:")]
    assert all(line.startswith("#") for line in header.splitlines() if line)
    for command in ("convert-hf2mg", "sft", "reward", "dpo", "convert-mg2hf"):
        assert f"#   alignctl {command} " in header
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_the_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count(load_preset(name).model) == parameters


def test_all_fourteen_presets_are_there() -> None:
    assert set(presets.names()) == {
        *PARAMETERS,
        "bloom-13b",
        "bloom-70b",
        "tiny-llama",
        "tiny-llama-gqa",
        "tiny-bloom",
    }


def test_bloom_7b1_is_another_name_of_bloom_7b() -> None:
    assert load_preset("bloom-7b1") == load_preset("bloom-7b")
