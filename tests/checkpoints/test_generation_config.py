"""Where a model's files end its answers, and what they ask for that alignctl does not do."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignctl.checkpoints.generation_config import end_token_ids, unheeded
from alignctl.errors import UserError

EOS, VOCABULARY = 2, 100


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def ends(folder: Path | None) -> tuple[int, ...]:
    return end_token_ids(folder, EOS, vocab_size=VOCABULARY)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([2, 87], (2, 87)),
        ([87, 2, 5, 87], (2, 87, 5)),
        (87, (2, 87)),
        (2, (2,)),
        (0, (2, 0)),
        (99, (2, 99)),
        ([], (2,)),
        (None, (2,)),
    ],
)
def test_eos_comes_first_and_every_other_end_once(
    value: object, expected: tuple[int, ...], tmp_path: Path
) -> None:
    assert ends(write(tmp_path, generation_config={"eos_token_id": value})) == expected


def test_a_model_with_nothing_beside_it_ends_with_eos(tmp_path: Path) -> None:
    assert ends(None) == ends(tmp_path) == (2,)


def test_config_json_counts_where_generation_config_json_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, config={"eos_token_id": [2, 7]})
    assert ends(tmp_path) == (2, 7)
    write(tmp_path, generation_config={"temperature": 0.6})
    assert ends(tmp_path) == (2, 7)
    write(tmp_path, generation_config={"eos_token_id": 9})
    assert ends(tmp_path) == (2, 9)


@pytest.mark.parametrize("name", ["generation_config", "config"])
@pytest.mark.parametrize("bad", [True, False, -1, 100, 2.0, "2", "</s>", {"id": 2}, [87]])
def test_what_is_no_token_is_refused_by_file_and_key(bad: Any, name: str, tmp_path: Path) -> None:
    """On its own and in a list; a list in a list is none either."""
    for value in ([bad], [2, bad]) if isinstance(bad, list) else (bad, [2, bad]):
        with pytest.raises(UserError) as caught:
            ends(write(tmp_path, **{name: {"eos_token_id": value}}))
        assert caught.value.message.startswith(
            f"{tmp_path / name}.json: eos_token_id has {bad!r}, which is no token of this model: "
            "they are numbers from 0 to 99"
        )


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2,')
    for read in (ends, lambda folder: unheeded(folder, repetition_penalty=1.0)):
        with pytest.raises(UserError, match=r"generation_config\.json: not valid JSON"):
            read(tmp_path)


def named(folder: Path | None, penalty: float = 1.0) -> str | None:
    return unheeded(folder, repetition_penalty=penalty)


def test_what_would_change_greedy_answers_is_named_with_its_value(tmp_path: Path) -> None:
    write(
        tmp_path,
        generation_config={
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
            "eos_token_id": [2, 87],
            "no_repeat_ngram_size": 3,
            "suppress_tokens": [1, 2],
            "num_beams": 4,
        },
    )
    assert named(tmp_path) == (
        f"{tmp_path}/generation_config.json: not heeded: no_repeat_ngram_size 3, num_beams 4, "
        "suppress_tokens [1, 2]; transformers would answer otherwise"
    )


def test_what_changes_nothing_is_not_named(tmp_path: Path) -> None:
    neutral: dict[str, object] = {
        "no_repeat_ngram_size": 0,
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "min_length": 0,
        "guidance_scale": 1.0,
        "bad_words_ids": None,
        "suppress_tokens": [],
        "sequence_bias": {},
    }
    assert named(None) is named(tmp_path) is None
    assert named(write(tmp_path, generation_config=neutral)) is None


def test_a_penalty_is_heeded_where_the_knob_has_it(tmp_path: Path) -> None:
    write(tmp_path, generation_config={"repetition_penalty": 1.1})
    assert named(tmp_path, penalty=1.1) is None
    told = named(tmp_path)
    assert told is not None
    assert "repetition_penalty 1.1; " in told
    assert told.endswith("there is a knob repetition_penalty")


def test_config_json_is_only_asked_where_there_is_no_generation_config_json(tmp_path: Path) -> None:
    write(tmp_path, config={"num_beams": 4, "hidden_size": 64})
    assert "config.json: not heeded: num_beams 4" in str(named(tmp_path))
    write(tmp_path, generation_config={})
    assert named(tmp_path) is None


def test_the_keys_are_those_that_transformers_knows() -> None:
    """One that it renamed would be looked for in vain."""
    from transformers import GenerationConfig

    from alignctl.checkpoints.generation_config import _NEUTRAL

    assert set(_NEUTRAL) <= set(GenerationConfig().to_dict())
