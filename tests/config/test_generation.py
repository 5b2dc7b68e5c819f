from typing import Any

import pytest

from alignctl.config.generation import Generation
from tests import tiny


@pytest.mark.parametrize(
    ("given", "family", "expected"),
    [
        ({}, "llama2", 32),
        ({}, "bloom", 32),
        ({"max_prompt_length": 60}, "llama2", 4),
        ({"max_prompt_length": 60}, "bloom", 512),
    ],
)
def test_a_default_length_is_what_fits(given: dict[str, Any], family: str, expected: int) -> None:
    """Of 64 tokens: half of them, or what the prompt leaves; ALiBi has no limit of its own."""
    model = tiny.architecture().model_copy(update={"family": family})
    fitted = Generation(**given).fitted(model)
    assert fitted.max_new_tokens == expected
    assert fitted.problems(model) == []


def test_a_default_length_that_fits_is_kept() -> None:
    model = tiny.architecture(max_position_embeddings=1024)
    assert Generation().fitted(model).max_new_tokens == 512


@pytest.mark.parametrize("given", [{"max_new_tokens": 512}, {"max_prompt_length": 64}])
def test_a_given_length_is_refused_where_it_does_not_fit(given: dict[str, Any]) -> None:
    model = tiny.architecture()
    (problem,) = Generation(**given).fitted(model).problems(model)
    assert "64" in problem
