"""Times and memory of the parts of a step."""

import time

from alignctl.reporting.phases import Phases


def test_blocks_of_one_name_add_up_and_memory_is_their_peak() -> None:
    phases = Phases()
    with phases("rollout"):
        time.sleep(0.02)
    first = phases.row["seconds_rollout"]
    held = bytearray(b"x" * 2**26)
    with phases("training"):
        pass
    with phases("rollout"):
        time.sleep(0.02)
    row = phases.row
    assert list(row) == [
        "seconds_rollout",
        "seconds_training",
        "memory_gib_rollout",
        "memory_gib_training",
    ]
    assert first >= 0.02
    assert row["seconds_rollout"] >= first + 0.02
    assert row["seconds_training"] >= 0
    assert row["memory_gib_rollout"] >= row["memory_gib_training"] >= len(held) / 2**30
