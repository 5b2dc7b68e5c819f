"""The warning that the rule finds no answer right."""

import pytest

from alignctl.config.on_policy import Score
from alignctl.on_policy.alarm import Alarm

FOUND = {"rule_no_answer": 0.75, "rule_timeout": 0.0, "score": 0.0}


def test_a_rule_that_finds_nothing_right_is_told_again_and_again() -> None:
    """After three and six episodes in a row; one right answer starts the count anew."""
    alarm = Alarm(Score(source="sparse_only", alarm_after=3))
    said = [
        alarm.observe({**FOUND, "accuracy": accuracy})
        for accuracy in (0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    ]
    assert [place for place, text in enumerate(said) if text is not None] == [5, 8]
    assert said[5] == (
        "warning: no answer was right in the last 3 episodes, so nothing is learned from the rule "
        "(no_answer 75%, timeout 0%): are the answers parsed, and the reference answers the final "
        "results? samples/ has both"
    )
    assert "in the last 6 episodes" in str(said[8])


@pytest.mark.parametrize(
    ("source", "found"), [("merge", {}), ("dense_only", {**FOUND, "accuracy": 0.0})]
)
def test_without_a_rule_that_counts_there_is_nothing_to_watch(
    source: str, found: dict[str, float]
) -> None:
    """With dense_only the rule's accuracy is told, but nothing is learned from it."""
    alarm = Alarm(Score.model_validate({"source": source, "alarm_after": 3}))
    assert [alarm.observe(found) for _ in range(9)] == [None] * 9
