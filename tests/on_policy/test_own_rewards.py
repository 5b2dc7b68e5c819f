"""Scores by rewards of one's own: what they add, what a failure counts, and what is told."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignctl.data.prompt_store import WholeRows, encode_row
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import RunError
from alignctl.on_policy import sample_log
from alignctl.on_policy.own_rewards import OwnRewards, Part, fill_failed
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import Experience
from alignctl.on_policy.scoring import Judge, Scored, Scorer
from alignctl.rewards.functions import Functions
from alignctl.rewards.workers import RuleWorkers
from alignctl.run_folder import RunFolder
from tests.on_policy import scripted
from tests.on_policy.scripted import ScriptedReward

pytestmark = pytest.mark.usefixtures("job")

MODULE = """
def score(prompt, completion, row):
    if "3" in completion:
        raise ValueError(f"{prompt} {row['level']}")
    return {"score": float(row["level"]), "characters": len(completion)}

def never(prompt, completion, row):
    return "text"
"""

Make = Callable[..., Scorer]


@pytest.fixture
def make(folder: Path, tokenizer: Tokenizer, judges: RuleWorkers) -> Iterator[Make]:
    """Makes a scorer whose rows have a level, ten times the prompt's number."""
    file = folder / "my_reward.py"
    file.write_text(MODULE)
    lines = [encode_row(f"{n}+1=", {"question": n, "level": 10 * n}) for n in range(8)]
    (folder / "rows.jsonl").write_bytes(b"".join(lines))
    rows = WholeRows(folder / "rows.jsonl", np.cumsum([0, *map(len, lines)]))
    with ExitStack() as stack:

        def make(*entries: dict[str, Any], **score: Any) -> Scorer:
            functions = [{"file": file, **entry} for entry in entries]
            settings = {"source": "functions", "missing_eos": "keep", "functions": functions}
            config = scripted.config(folder, score=settings | score)
            models = scripted.models(config, None, ScriptedReward(len))
            if not config.score.needs_model:
                models.reward = None
            object.__setattr__(data := scripted.prompts(tokenizer), "rows", rows)
            own = OwnRewards(
                stack.enter_context(Functions(config.score.functions, 1)), tokenizer, data
            )
            return Scorer(models, data, Judge(tokenizer, judges), own)

        yield make


def test_a_function_alone_scores_and_its_failure_is_the_mean_of_its_group(
    make: Make, samples: Samples
) -> None:
    scorer = make({"weight": 0.5})
    found = scorer.score(samples)
    assert found.scores.tolist() == [5, 5, 20, 20]
    [part] = found.parts
    assert part.failures == [None, "my_reward.py:4: ValueError: 1+1= 10", None, None]
    metrics = found.metrics
    assert metrics["reward_score"] == 30.0, "the mean of 10, 40 and 40, before the weight"
    assert metrics["reward_score_std"] == pytest.approx(np.std([10, 40, 40]))
    assert metrics["reward_score_failed"] == 1
    assert metrics["reward_score_share"] == pytest.approx(1)
    assert metrics["reward_score_characters"] == pytest.approx(np.mean([7, 6, 15]))
    assert "reward_score_retried" not in metrics
    assert scorer.own is not None
    assert scorer.own.take_warnings() == [
        "warning: reward score gave 1 of 4 answers no score; the first is an answer to "
        "sums.jsonl:2: my_reward.py:4: ValueError: 1+1= 10 (samples/ has all)"
    ]
    assert scorer.own.take_warnings() == []


def test_a_failure_may_have_a_score_of_its_own(make: Make, samples: Samples) -> None:
    assert make({"failed": -7.0}).score(samples).scores.tolist() == [10, -7, 40, 40]


def test_rule_model_and_functions_are_added_with_their_weights(
    make: Make, samples: Samples
) -> None:
    """What is told of each is unweighted; the shares of all of them add up to 1."""
    scorer = make(
        {"weight": 0.5}, {"label": "other", "weight": -0.25}, source="merge", model_coef=2.0
    )
    found = scorer.score(samples)
    lengths = np.asarray(
        [len(q) + len(a) for q, a in zip(samples.questions, samples.answers, strict=True)]
    )
    own = np.asarray([10, 10, 40, 40])
    expected = np.asarray([1, 0, 1, 0]) + 2 * lengths + 0.25 * own
    assert found.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    metrics = found.metrics
    labels = ("rule", "model", "score", "other")
    assert [part.label for part in found.parts] == [*labels]
    assert metrics["reward_rule"] == metrics["accuracy"] == 0.5
    assert metrics["reward_model"] == metrics["model_score"]
    assert metrics["reward_other"] == 30.0
    assert sum(metrics[f"reward_{label}_share"] for label in labels) == pytest.approx(1)
    assert metrics["reward_other_share"] < 0, "it draws the other way"


def test_a_weight_of_zero_is_told_and_teaches_nothing(make: Make, samples: Samples) -> None:
    found = make({"weight": 0.0}, source="sparse_only").score(samples)
    assert found.scores.tolist() == [1, 0, 1, 0]
    assert found.metrics["reward_score"] == 30.0
    assert found.metrics["reward_score_share"] == 0


def test_a_reward_that_scores_nothing_ends_the_run(make: Make, samples: Samples) -> None:
    with pytest.raises(RunError) as caught:
        make({"name": "never"}).score(samples)
    assert "(" in caught.value.message
    assert "gave none of 4 answers a score; the first is an answer to sums.jsonl:2: score is" in (
        caught.value.message
    )


def test_failures_are_told_three_times_and_then_only_counted(make: Make, samples: Samples) -> None:
    scorer = make({})
    told = []
    for _ in range(5):
        assert scorer.score(samples).metrics["reward_score_failed"] == 1
        assert scorer.own is not None
        told += scorer.own.take_warnings()
    assert len(told) == 3
    assert told[-1].endswith("(samples/ has all; from now on such are only counted)")


def test_the_same_answers_get_the_same_scores_bit_for_bit(make: Make, samples: Samples) -> None:
    first, second = make({}).score(samples), make({}).score(samples)
    assert first.scores.tobytes() == second.scores.tobytes()
    assert first.metrics == second.metrics


def test_parts_follow_their_answers(make: Make, samples: Samples) -> None:
    """As they do when groups that are all alike are left out, and others asked in their place."""
    found = make({}, source="sparse_only").score(samples)
    joined = Scored.join([found.select([2, 3]), found.select([0, 1])])
    again = joined.select([2, 3, 0, 1])
    for part, other in zip(found.parts, again.parts, strict=True):
        assert part.label == other.label
        assert np.array_equal(part.values, other.values, equal_nan=True)
        assert part.counted.tolist() == other.counted.tolist()
        assert [*part.failures] == [*other.failures]
    assert found.metrics == again.metrics


def test_joined_parts_add_up_their_retries_and_may_have_told_other_numbers() -> None:
    def part(value: float, name: str, retries: int) -> Part:
        values = np.asarray([value])
        return Part("a", 1.0, values, values, [None], {name: values}, retries)

    joined = Part.join([part(1, "x", 2), part(2, "y", 3)])
    assert joined.retries == 5
    told = joined.told(joined.weighted)
    assert (told["reward_a_x"], told["reward_a_y"], told["reward_a_retried"]) == (1, 2, 5)


def test_what_failures_count() -> None:
    """The mean of the same group, of all where the group has no other, or a number."""
    values = np.asarray([1, np.nan, 3, np.nan, np.nan, 8])
    groups = np.asarray([0, 0, 0, 1, 1, 2])
    assert fill_failed(values, groups, None).tolist() == [1, 2, 3, 4, 4, 8]
    assert fill_failed(values, groups, -1.0).tolist() == [1, -1, 3, -1, -1, 8]


def test_samples_say_what_each_reward_said(
    make: Make, samples: Samples, folder: Path, tokenizer: Tokenizer
) -> None:
    scorer = make({}, source="sparse_only")
    gathered = Experience(samples, scorer.score(samples), {})
    sample_log.write(RunFolder(folder), 1, gathered, None, scorer.data, tokenizer)
    lines = (folder / "samples/episode_0000001.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["rewards"] for row in rows] == [
        {"rule": 1, "score": 10},
        {"rule": 0, "score": None},
        {"rule": 1, "score": 40},
        {"rule": 0, "score": 40},
    ]
    assert rows[1]["failures"] == {"score": "my_reward.py:4: ValueError: 1+1= 10"}
    assert all("failures" not in rows[place] for place in (0, 2, 3))
