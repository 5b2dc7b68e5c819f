"""Whatever state an optimizer is in when it is saved, it goes on from there bit for bit, twice."""

from pathlib import Path

import pytest

from tests import tiny
from tests.engines import saved_states


@pytest.mark.slow  # a minute of a job with each engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "world"), [("megatron", 1), ("megatron", 2), ("deepspeed", 2)])
def test_an_optimizer_goes_on_from_every_state(tmp_path: Path, engine: str, world: int) -> None:
    """No step yet or a few; all layouts, bf16 with master weights, adapters alone."""
    tiny.write_model(tmp_path / "hf")
    found = saved_states.run(tmp_path, engine, world=world)
    assert len(found) >= 12
    assert {case: wrong for case, wrong in found.items() if wrong} == {}
