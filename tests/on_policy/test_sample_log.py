"""What is written down of an episode's samples, for a reader."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignctl.data.tokenizer import Tokenizer
from alignctl.on_policy import sample_log
from alignctl.on_policy.sampling import Experience
from alignctl.run_folder import RunFolder
from tests.on_policy import scripted

pytestmark = pytest.mark.usefixtures("job")


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
