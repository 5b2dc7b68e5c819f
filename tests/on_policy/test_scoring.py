"""Scores: by a model, by a rule, by both; what becomes of answers that did not end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import RunError
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.scoring import REASONS, Judge, Scored, Scorer
from alignctl.rewards.combine import repetition_penalty
from alignctl.rewards.workers import RuleWorkers
from tests.on_policy import scripted
from tests.on_policy.scripted import ScriptedReward

pytestmark = pytest.mark.usefixtures("job")

OFFSET = 0.5


def scorer(
    folder: Path, tokenizer: Tokenizer, score: dict[str, Any], judges: RuleWorkers | None = None
) -> Scorer:
    """With a reward model that counts the tokens of question and answer, of cut ones too."""
    score = {"missing_eos": "keep"} | score
    models = scripted.models(scripted.config(folder, score=score), None, ScriptedReward(len))
    models.score_offset = OFFSET
    if score["source"] == "sparse_only":
        models.reward = None
    rule = "math_rule" if judges else None
    judge = Judge(tokenizer, judges) if judges else None
    return Scorer(models, scripted.prompts(tokenizer, rule=rule), judge)


def lengths(samples: Samples) -> list[float]:
    pairs = zip(samples.questions, samples.answers, strict=True)
    return [len(question) + len(answer) + OFFSET for question, answer in pairs]


def test_a_rule_alone_gives_one_or_nothing(
    folder: Path, tokenizer: Tokenizer, samples: Samples, judges: RuleWorkers
) -> None:
    found = scorer(folder, tokenizer, {"source": "sparse_only"}, judges).score(samples)
    assert found.scores.tolist() == [1, 0, 1, 0]
    assert [REASONS[reason] for reason in found.reasons] == [
        "correct",
        "wrong",
        "correct",
        "no_answer",
    ]
    assert found.model is None
    assert found.metrics["accuracy"] == 0.5
    assert found.metrics["rule_no_answer"] == 0.25
    assert found.metrics["rule_timeout"] == 0
    assert "model_score" not in found.metrics


def test_a_model_alone_gives_its_score_with_its_offset(
    folder: Path, tokenizer: Tokenizer, samples: Samples
) -> None:
    found = scorer(folder, tokenizer, {"source": "dense_only"}).score(samples)
    assert found.scores.tolist() == pytest.approx(lengths(samples), abs=1e-4)
    assert found.reasons.tolist() == [-1] * 4
    assert found.metrics["model_score"] == found.metrics["score"]
    assert "accuracy" not in found.metrics


def test_merged_scores_are_the_sum_and_only_the_models_is_clipped(
    folder: Path, tokenizer: Tokenizer, samples: Samples, judges: RuleWorkers
) -> None:
    found = scorer(folder, tokenizer, {"source": "merge", "clip": 12.0}, judges).score(samples)
    expected = np.minimum(lengths(samples), 12) + np.asarray([1, 0, 1, 0])
    assert found.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.model is not None
    assert found.model.tolist() == pytest.approx(lengths(samples), abs=1e-4)


def test_a_bias_comes_before_the_clip_and_a_weight_after(
    folder: Path, tokenizer: Tokenizer, samples: Samples, judges: RuleWorkers
) -> None:
    """ChatLearn's reward_bias and raw_reward_coeff; the rule keeps its 1, and metrics are raw."""
    score = {"source": "merge", "bias": 3.0, "clip": 5.0, "model_coef": 0.5}
    found = scorer(folder, tokenizer, score, judges).score(samples)
    expected = 0.5 * np.clip(lengths(samples) - np.full(4, 3.0), -5, 5) + np.asarray([1, 0, 1, 0])
    assert found.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.metrics["model_score"] == pytest.approx(np.mean(lengths(samples)), abs=1e-4)


@pytest.mark.parametrize(("missing", "expected"), [("keep", 1), ("replace", -3), ("add", -2)])
def test_an_answer_that_did_not_end(
    folder: Path,
    tokenizer: Tokenizer,
    samples: Samples,
    judges: RuleWorkers,
    missing: str,
    expected: float,
) -> None:
    """The third is right and was cut: its score stays, becomes -3, or loses 3."""
    score = {"source": "sparse_only", "missing_eos": missing, "missing_eos_score": -3.0}
    found = scorer(folder, tokenizer, score, judges).score(samples)
    assert found.scores.tolist() == [1, 0, expected, 0]
    assert found.metrics["accuracy"] == 0.5, "what the rule found is told as it was"


def test_a_cut_answer_is_not_scored_by_the_model_unless_that_is_asked_for(
    folder: Path, tokenizer: Tokenizer, samples: Samples
) -> None:
    """The third was cut: it gets 1 less than the worst of the others; with keep its own score."""
    exact = lengths(samples)
    least = min(exact[:2] + exact[3:])
    by_default = {"source": "dense_only", "missing_eos": None}
    found = scorer(folder, tokenizer, by_default).score(samples)
    assert found.scores.tolist() == pytest.approx([*exact[:2], least - 1, exact[3]], abs=1e-4)
    assert found.model is not None
    assert found.model.tolist() == pytest.approx(exact, abs=1e-4), "as the model gave them"
    kept = scorer(folder, tokenizer, {"source": "dense_only", "missing_eos": "keep"})
    assert kept.score(samples).scores.tolist() == pytest.approx(exact, abs=1e-4)


def test_an_answer_that_ended_with_another_end_token_has_ended(
    folder: Path, tokenizer: Tokenizer, samples: Samples, judges: RuleWorkers
) -> None:
    """As the second does here, which says the digit 2 after that of a right answer, as an end.

    The rule reads `#### 2` in both, nothing is taken for cut, and the reward model reads both with
    EOS at the end, where it has learned to score, so that they are one text to it.
    """
    (two,) = scripted.tokens_of(tokenizer, "2")
    right = scripted.samples(tokenizer, (0, 1, "#### 2."), (0, 1, "#### 2."))
    right.answers[1][-1] = two
    score = {"source": "merge", "missing_eos": "replace", "missing_eos_score": -9.0}
    made = scorer(folder, tokenizer, score, judges)
    made.models.reward = ScriptedReward(lambda tokens: float(tokens[-1]))  # type: ignore[assignment]
    made.models.end_token_ids = (scripted.EOS, two)
    found = made.score(right)
    assert found.scores.tolist() == [scripted.EOS + OFFSET + 1] * 2
    assert made.models.reward.num_scored == 1  # type: ignore[union-attr]


def test_the_running_deviation_includes_the_scores_it_divides(
    folder: Path, tokenizer: Tokenizer, samples: Samples
) -> None:
    """After two episodes that of all scores; a validation leaves it as it is."""
    made = scorer(folder, tokenizer, {"source": "dense_only", "scale": "running"})
    exact = np.asarray(lengths(samples))
    first = made.score(samples)
    assert first.scores.tolist() == pytest.approx((exact / exact.std()).tolist(), rel=1e-5)
    before = made.running
    others = samples.select([0, 3])
    made.score(others, is_validation=True)
    assert made.running == before
    second = made.score(others)
    deviation = np.concatenate([exact, exact[[0, 3]]]).std()
    assert second.scores.tolist() == pytest.approx((exact[[0, 3]] / deviation).tolist(), rel=1e-5)
    assert made.running.count == 6


def test_penalties_for_length_and_repetition(
    folder: Path, tokenizer: Tokenizer, samples: Samples
) -> None:
    """Answers of 7, 7, 6 and 15 tokens or so, of at most 16, over a buffer of 10."""
    score = {"source": "dense_only", "overlong_buffer": 10, "ngram_coef": 0.5}
    found = scorer(folder, tokenizer, score).score(samples)
    overlong = -np.clip((samples.lengths - 6) / 10, 0, 1)
    assert found.scores.tolist() == pytest.approx(lengths(samples), abs=1e-4)
    repetitions = [0.5 * repetition_penalty(answer.tolist()) for answer in samples.answers]
    assert found.extra.tolist() == pytest.approx((overlong + repetitions).tolist(), abs=1e-6)
    assert overlong.min() < 0
    assert min(repetitions) < 0
    assert found.rewards.tolist() == (found.scores + found.extra).tolist()


def test_equal_answers_get_equal_scores_to_the_last_bit(folder: Path, tokenizer: Tokenizer) -> None:
    """The model rounds by neighbours, and what differs by rounding would be a preference."""
    made = scorer(folder, tokenizer, {"source": "dense_only"})
    answers = [(0, 1, "2."), (0, 1, "22."), (0, 1, "2."), (1, 1, "2."), (1, 4, "2.")]
    found = made.score(scripted.samples(tokenizer, *answers))
    assert found.scores[0] == found.scores[2] == found.scores[3]
    assert found.scores[0] != found.scores[4], "another prompt; the script's rounding shows"
    assert made.models.reward.num_scored == 3  # type: ignore[union-attr]


def test_a_score_that_is_no_number_stops_the_run(
    folder: Path, tokenizer: Tokenizer, samples: Samples
) -> None:
    """The last of three, whose answer is the longest."""
    made = scorer(folder, tokenizer, {"source": "dense_only"})
    longest = len(samples.questions[3]) + len(samples.answers[3])
    made.models.reward = ScriptedReward(  # type: ignore[assignment]
        lambda tokens: float("nan") if len(tokens) == longest else 1.0
    )
    with pytest.raises(RunError, match=r"sums.jsonl:5: .*scores 1 of 3 answers with nan"):
        made.score(samples.select([0, 1, 3]))


def test_parts_of_scores_and_scores_joined() -> None:
    whole = Scored(
        np.asarray([1.0, 2.0, 3.0]),
        np.asarray([4.0, 5.0, 6.0]),
        np.asarray([0, -1, 1]),
        np.asarray([0.0, -1.0, -2.0]),
    )
    found = Scored.join([whole.select([2]), whole.select([0, 1])])
    assert found.scores.tolist() == [3, 1, 2]
    assert found.model is not None
    assert found.model.tolist() == [6, 4, 5]
    assert found.reasons.tolist() == [1, 0, -1]
    assert found.extra.tolist() == [-2, 0, -1]
    assert Scored.join([scripted.scored(1.0)]).model is None
