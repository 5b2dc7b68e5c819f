import json
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import UserError
from alignctl.evaluation.generation import Generator
from alignctl.evaluation.mt_bench.answers import (
    ModelAuthor,
    MTBenchGeneration,
    name_of,
    open_author,
    prompts,
)
from alignctl.evaluation.mt_bench.fastchat_answers import read_answers
from alignctl.evaluation.mt_bench.replies import Reply, open_cache
from tests import tiny_on_policy
from tests.commands import alignctl
from tests.evaluation.judge_server import Act, serving
from tests.evaluation.test_mt_bench import arguments
from tests.evaluation.texts import question, write_answers, write_rows

QUESTIONS = [
    question(0, "writing", ("Sing.", "Louder.")),
    question(1, "math", ("1+1?", "2+2?")),
    question(2, "poetry", ("Rhyme.",)),
]
COUNTS: dict[str, Any] = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "max_prompt_length": 96}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_on_policy.write(tmp_path_factory.mktemp("model")) / "hf"


def test_the_second_turn_shows_the_first_one_and_what_was_said(model: Path) -> None:
    """In the HH form, since the tokenizer has no template of its own; the last space is said."""
    generator = Generator(model, MTBenchGeneration(**SETTINGS))
    asked = [QUESTIONS[0], QUESTIONS[1]]
    found = prompts(generator, asked, {0: ["La la."], 1: ["2."]}, turn=1)
    texts = [generator.tokenizer.decode(prompt.tokens.tolist()) for prompt in found]
    human, assistant = "\n\nHuman: ", "\n\nAssistant: "
    assert texts[0].endswith(f"{human}Sing.{assistant}La la.{human}Louder.{assistant.rstrip()}")
    assert texts[1].endswith(f"{human}1+1?{assistant}2.{human}2+2?{assistant.rstrip()}")
    assert [prompt.number for prompt in found] == [1, 3]


def test_temperatures_are_fastchats_unless_one_is_given(model: Path) -> None:
    said: dict[int | str, list[str]] = {0: [], 1: [], 2: []}
    usual = Generator(model, MTBenchGeneration(**SETTINGS))
    assert [p.temperature for p in prompts(usual, QUESTIONS, said, turn=0)] == [0.7, 0.0, 0.7]
    own = Generator(model, MTBenchGeneration(**SETTINGS, temperature=0.0))
    assert [p.temperature for p in prompts(own, QUESTIONS, said, turn=0)] == [None] * 3


def test_answers_to_fewer_turns_or_other_questions_are_told(tmp_path: Path) -> None:
    file = write_answers(tmp_path / "a.jsonl", [0], "said")
    assert read_answers(file, QUESTIONS[:1]) == {0: ("said 0 one", "said 0 two")}
    with pytest.raises(UserError, match=r"2 of 3 questions have no answer .* is question 1"):
        read_answers(file, QUESTIONS)


def author(model: Path, folder: Path, **changes: int) -> ModelAuthor:
    settings = MTBenchGeneration.model_validate(SETTINGS | changes)
    found = open_author("m", model, settings, None, folder)
    assert isinstance(found, ModelAuthor)
    return found


def test_answers_of_other_weights_or_settings_are_not_taken_for_a_models_own(
    model: Path, tmp_path: Path
) -> None:
    """The second turns can be asked when the first ones are answered."""
    asked = author(model, tmp_path)
    assert asked.known(QUESTIONS) is None
    with open_cache(asked.file) as cache:
        for turn, expected in ((0, 3), (1, 2), (2, 0)):
            said, pending = asked.look(cache, QUESTIONS)
            assert len(pending) == expected
            assert [len(said[q.id]) for q in QUESTIONS] == [
                min(turn, len(q.turns)) for q in QUESTIONS
            ]
            for prompt in pending:
                reply: dict[str, Any] = {
                    "finish_reason": "stop",
                    "prompt_tokens": 1,
                    "completion_tokens": 1,
                }
                cache.add(name_of(prompt), Reply(text=f"{turn}", time=1.0, **reply))
    complete = {0: ["0", "1"], 1: ["0", "1"], 2: ["0"]}
    assert asked.known(QUESTIONS) == complete
    assert asked.known(QUESTIONS[1:]) == {1: ["0", "1"], 2: ["0"]}
    assert author(model, tmp_path, batch=3).known(QUESTIONS) == complete
    assert author(model, tmp_path, max_new_tokens=9).known(QUESTIONS) is None
    assert author(model, tmp_path, seed=1).known(QUESTIONS) is None
    other = tiny_on_policy.write(tmp_path / "other") / "hf"
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert author(other, tmp_path).known(QUESTIONS) is None


@pytest.mark.slow
def test_models_answer_and_are_judged_in_one_table(model: Path, tmp_path: Path) -> None:
    """Two models by vLLM, one after the other, and a file of answers; nothing is done twice."""
    rows = [
        {"question_id": q.id, "category": q.category, "turns": q.turns, "reference": ["a", "b"]}
        for q in QUESTIONS
    ]
    questions = write_rows(tmp_path / "questions.jsonl", rows)
    other = tiny_on_policy.write(tmp_path / "other") / "hf"
    file = write_answers(tmp_path / "given.jsonl", range(3), "given")
    knobs = [f"{name}={value}" for name, value in SETTINGS.items()]
    with serving(lambda prompt, number: Act(text=f"[[{1 + len(prompt) % 10}]]")) as server:
        command = [*arguments(server, tmp_path / "out", model, other, file), *knobs]
        command += ["--questions", questions]
        outcome = alignctl(*command)
        assert outcome.code == 0, outcome.text
        assert outcome.err.count(": 5 answers, ") == 2
        asked = sum(server.answered.values())
        again = alignctl(*command)
        assert again.code == 0, again.text
        assert sum(server.answered.values()) == asked
    assert " answers, " not in again.err
    assert again.out == outcome.out
    folder = tmp_path / "out" / "model_answer"
    assert len(list(folder.glob("*.jsonl"))) == 2
    for answers in folder.glob("*.jsonl"):
        found = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
        assert [row["question_id"] for row in found] == [0, 1, 2]
        assert [len(row["choices"][0]["turns"]) for row in found] == [2, 2, 1]
    assert len(outcome.out.splitlines()[0].split()) == 4
