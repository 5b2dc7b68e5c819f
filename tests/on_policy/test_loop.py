"""What the loop tells, and what it writes down for a reader."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignctl.data.tokenizer import Tokenizer
from alignctl.launch.run_folder import RunFolder
from alignctl.on_policy import sample_log
from alignctl.on_policy.loop import Loop
from alignctl.on_policy.models import Loaded
from alignctl.on_policy.sampling import Experience
from alignctl.reporting.metrics import MetricsWriter
from tests.on_policy import scripted

pytestmark = pytest.mark.usefixtures("job")


@contextmanager
def watching(folder: Path, source: str = "sparse_only") -> Iterator[tuple[Loop, MetricsWriter]]:
    run = RunFolder(folder)
    settings = scripted.config(folder, score={"source": source, "alarm_after": 3})
    unused: Any = None
    with MetricsWriter(run, enabled=True) as metrics:
        loaded = Loaded(unused, unused, None, step=0)
        yield Loop(settings, run, loaded, unused, unused, unused, unused), metrics


def notes(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    return [row["text"] for row in rows if row["kind"] == "note"]


def test_a_rule_that_finds_nothing_right_is_told_again_and_again(folder: Path) -> None:
    """After three and six episodes in a row; one right answer starts the count anew."""
    with watching(folder) as (loop, metrics):
        loop.last = {"rule_no_answer": 0.75, "rule_timeout": 0.0, "score": 0.0}
        for accuracy in (0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
            loop._watch(accuracy, metrics)
    first, second = notes(folder)
    assert first == (
        "warning: no answer was right in the last 3 episodes, so nothing is learned from the rule "
        "(no_answer 75%, timeout 0%): are the answers parsed, and the reference answers the final "
        "results? samples/ has both"
    )
    assert "in the last 6 episodes" in second


@pytest.mark.parametrize(("source", "accuracy"), [("merge", None), ("dense_only", 0.0)])
def test_without_a_rule_that_counts_there_is_nothing_to_watch(
    folder: Path, source: str, accuracy: float | None
) -> None:
    """With dense_only the rule's accuracy is told, but nothing is learned from it."""
    with watching(folder, source) as (loop, metrics):
        for _ in range(9):
            loop._watch(accuracy, metrics)
    assert notes(folder) == []


def test_samples_are_written_with_all_that_was_found(folder: Path, tokenizer: Tokenizer) -> None:
    answers = scripted.samples(tokenizer, (0, 1, "2."), (1, 4, "no\u00e9"))
    scored = scripted.scored(1.0, -0.5, reasons=("correct", "no_answer"))
    gathered = Experience(answers, scored, {})
    run, data = RunFolder(folder), scripted.prompts(tokenizer)
    sample_log.write(run, 12, gathered, np.asarray([0.25, -0.125]), data, tokenizer)
    lines = (folder / "samples/episode_0000012.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "where": "sums.jsonl:2",
            "prompt": "1+1=",
            "answer": "2.</s>",
            "is_finished": True,
            "score": 1.0,
            "rule": "correct",
            "expected": "2",
            "kl": 0.25,
        },
        {
            "where": "sums.jsonl:5",
            "prompt": "4+1=",
            "answer": "no\u00e9",
            "is_finished": False,
            "score": -0.5,
            "rule": "no_answer",
            "expected": "5",
            "kl": -0.125,
        },
    ]
    assert list(sample_log.shown(gathered, data, tokenizer, 1)) == ["  score 1  '1+1=' -> '2.</s>'"]
    assert len(list(sample_log.shown(gathered, data, tokenizer, 5))) == 2


def test_without_a_reference_or_a_rule_a_sample_says_less(
    folder: Path, tokenizer: Tokenizer
) -> None:
    gathered = Experience(scripted.samples(tokenizer, (0, 1, "2.")), scripted.scored(0.5), {})
    data = scripted.prompts(tokenizer, rule=None)
    sample_log.write(RunFolder(folder), 1, gathered, None, data, tokenizer)
    row = json.loads((folder / "samples/episode_0000001.jsonl").read_text())
    assert row.keys() == {"where", "prompt", "answer", "is_finished", "score"}
