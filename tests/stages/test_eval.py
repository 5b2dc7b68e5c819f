"""The programs that measure models: numbers, messages, and real runs from end to end."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignctl import cli
from alignctl.data.preference_store import PreferenceSplit
from alignctl.stages import eval_math, eval_pairs
from tests import tiny
from tests.commands import alignctl
from tests.rollouts.jobs import make_models

pytestmark = pytest.mark.ci

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; returns its exit code and its words."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["alignctl", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies and a reward model that vLLM and Megatron run on a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = make_models(tmp_path_factory.mktemp("models"))
    config = LlamaConfig.from_pretrained(folder / "llama-gqa", num_labels=1, pad_token_id=3)
    torch.manual_seed(5)
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    for model in folder.iterdir():
        tiny.write_tokenizer(model)
    return folder


def test_exact_match_of_one_answer_has_wilsons_interval() -> None:
    """5 of 10: 0.2366 to 0.7634."""
    reasons: Any = [["correct"]] * 5 + [["wrong"]] * 3 + [["no_answer"], ["timeout"]]
    found = eval_math.measure(eval_math.Solved(reasons, num_full=2, mean_tokens=4.0))
    assert found["exact_match"]["value"] == 0.5
    assert found["exact_match"]["interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert (found["no_answer"], found["timeout"], found["wrong"]) == (1, 1, 3)
    assert "pass@2" not in found


def test_pass_at_k_is_a_mean_over_problems() -> None:
    """Of 3 samples, 1 and 0 are right: pass@1 1/6, pass@2 (1 - 1/3) / 2, pass@3 1/2."""
    reasons: Any = [["correct", "wrong", "wrong"], ["wrong"] * 3]
    found = eval_math.measure(eval_math.Solved(reasons, num_full=0, mean_tokens=4.0))
    assert found["exact_match"]["value"] == pytest.approx(1 / 6)
    assert found["pass@2"]["value"] == pytest.approx(1 / 3)
    assert found["pass@3"]["value"] == pytest.approx(1 / 2)


def test_accuracy_on_preferences_weighs_prompts_the_same_and_ties_half() -> None:
    """First prompt: 3 pairs, one right, one wrong, one tie: 1/2. Second: one pair, right. 3/4."""
    split = PreferenceSplit(
        tokens=np.zeros(0, np.int32),
        supervised=np.zeros(0, np.bool_),
        offsets=np.zeros(6, np.int64),
        members=np.arange(5),
        bounds=np.asarray([0, 3, 5]),
        scores=np.asarray([3.0, 2.0, 1.0, 0.0, 1.0]),
    )
    scores = np.asarray([1.0, 2.0, 1.0, -1.0, 1.0])
    found = eval_pairs.measure(split, scores)
    assert found["accuracy"]["value"] == pytest.approx(0.75)
    assert (found["prompts"], found["pairs"], found["ties"]) == (2, 4, 1)
    assert found["mean_margin"] == pytest.approx(((-1 + 0 + 1) / 3 + 2) / 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("math", "temperature=1.0"), "no model was given"),
        (("math", "runs/a", "runs/a"), "runs/a: this model is there twice"),
        (("math", "runs/a", "samples=4"), "samples 4 would be the same at temperature 0"),
        (("math", "runs/a", "sample=4"), "unknown key 'sample'; did you mean 'samples'?"),
        (("math", "runs/a", "data=b"), "data is not a knob, but a flag: --data"),
        (("math", "runs/a"), "rows.jsonl:1: no answer in this row"),
        (("preference", "runs/a", "--baseline", "runs/b"), "--reward-load is missing"),
        (("preference", "runs/a", "--reward-load", "runs/b"), "--baseline is missing"),
        (("preference", "runs/a", "max_new_tokens=8"), "unknown key 'max_new_tokens'"),
        (("preference", "runs/a"), "runs/a: no such folder"),
    ],
)
def test_what_is_wrong_is_named(
    words: tuple[str, ...], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"query": "a"}\n')
    code, err = run("eval", *words, "--data", "rows.jsonl", "--output", "out")
    assert code == 2
    assert message in err
    assert not Path("out").exists()


def test_a_harness_that_is_not_there_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name)
    )
    code, err = run("eval", "lm-eval", tmp_path, "--tasks", "arc_easy", "--output", tmp_path / "o")
    assert code == 2
    assert "lm-evaluation-harness is not installed" in err
    assert "pip install -e '.[lm-eval]'" in err


def test_reward_models_are_measured_on_preferences(models: Path, tmp_path: Path) -> None:
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    flags = ("--data", data, "--output", tmp_path / "out", "max_length=64")
    outcome = alignctl("eval", "preference", models / "reward", *flags)
    assert outcome.code == 0, outcome.text
    found = json.loads((tmp_path / "out" / "result.json").read_text())["models"]["reward"]
    assert (found["prompts"], found["pairs"]) == (40, 40)
    assert found["accuracy"]["value"] == pytest.approx(_accuracy(models / "reward", data))
    assert f"{100 * found['accuracy']['value']:.1f} [" in outcome.out
    assert "Warning" not in outcome.err


def _accuracy(model: Path, data: Path) -> float:
    """By transformers, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    network = AutoModelForSequenceClassification.from_pretrained(model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)

    def score(text: str) -> float:
        tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            return float(network(torch.tensor([tokens])).logits[0, 0])

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    right = [
        score(row["prompt"] + row["chosen"]) > score(row["prompt"] + row["rejected"])
        for row in rows
    ]
    return sum(right) / len(right)


def _length_reward(file: Path) -> str:
    """Writes a function that counts characters; returns how it is given."""
    file.write_text("def length(prompt, completion, row):\n    return len(completion)\n")
    return f"functions=[{{file: {file}, name: length}}]"


_SHORT = ("max_new_tokens=12", "max_prompt_length=60", "kv_cache_gib=0.05")


@pytest.mark.slow
def test_models_are_measured_on_math_side_by_side(models: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{a} + 1?", "answer": f"#### {a + 1}"} for a in range(6)]
    data = tiny.write_rows(tmp_path / "math.jsonl", rows)
    functions = _length_reward(tmp_path / "my_reward.py")
    command = (
        *("eval", "math", models / "llama-gqa", models / "llama-mha", "--data", data, functions),
        *("--output", tmp_path / "out", *_SHORT, "samples=3", "temperature=1.0"),
    )
    first = alignctl(*command)
    assert first.code == 0, first.text
    assert first.out.splitlines()[0].split() == ["llama-gqa", "llama-mha"]
    assert [line.split("  ")[0] for line in first.out.splitlines()[1:5]] == [
        *("problems", "exact match %", "pass@2 %", "pass@3 %")
    ]
    again = alignctl(*command, "--json")
    assert "complete already" in again.err
    assert json.loads(again.out) == json.loads((tmp_path / "out" / "result.json").read_text())
    found = json.loads(again.out)["models"]["llama-gqa"]
    said = [json.loads(line) for line in (tmp_path / "out/llama-gqa.jsonl").open()]
    lengths = [len(text) for row in said for text in row["response"]]
    assert (found["problems"], len(lengths), found["reward_length_failed"]) == (6, 18, 0)
    assert found["reward_length"] == pytest.approx(np.mean(lengths))


@pytest.mark.slow
def test_a_model_neither_wins_nor_loses_against_itself(models: Path, tmp_path: Path) -> None:
    """Equal answers have equal scores, to the last bit; another model's do not."""
    data = tiny.write_rows(tmp_path / "prompts.jsonl", [{"query": f"{a}?"} for a in range(8)])
    outcome = alignctl(
        *("eval", "preference", models / "llama-gqa", models / "llama-mha"),
        *("--baseline", models / "llama-gqa", "--reward-load", models / "reward"),
        *("--data", data, "--output", tmp_path / "out", *_SHORT, "--json"),
        _length_reward(tmp_path / "my_reward.py"),
    )
    assert outcome.code == 0, outcome.text
    found = json.loads(outcome.out)["models"]
    assert (found["llama-gqa"]["win_rate"]["value"], found["llama-gqa"]["ties"]) == (0.5, 8)
    assert found["llama-mha"]["ties"] < 8
    assert found["llama-mha"]["mean_difference"] != 0
    assert set(found) == {"llama-gqa", "llama-mha", "baseline"}
    assert found["llama-gqa"]["wins_by_length"]["value"] == 0.5
    assert found["llama-gqa"]["reward_length"] == found["baseline"]["reward_length"]
    # The answers are a baseline themselves.
    again = alignctl(
        *("eval", "preference", models / "llama-gqa", "--reward-load", models / "reward"),
        *("--baseline", tmp_path / "out" / "llama-gqa.jsonl", "--data", data, "--json"),
        *("--output", tmp_path / "again", *_SHORT),
    )
    assert again.code == 0, again.text
    assert json.loads(again.out)["models"]["llama-gqa"]["ties"] == 8


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="NOT TESTED: lm-evaluation-harness is not installed (pip install -e '.[lm-eval]')",
)
def test_the_harness_measures_models_of_all_formats_on_a_task_of_ones_own(tmp_path: Path) -> None:
    """A folder of transformers and a checkpoint of Megatron say the same; nothing is downloaded."""
    model = tiny.write_model(tmp_path / "hf")
    flags = ("--load", model, "--save", tmp_path / "mg", "--verify", "none")
    assert alignctl("convert-hf2mg", *flags, "--tp", 2).code == 0
    choices = [{"question": f"{a} + 1 =", "choices": [f" {a + 1}", f" {a}"]} for a in range(12)]
    data = tiny.write_rows(tmp_path / "tasks" / "sums.jsonl", choices)
    (tmp_path / "tasks" / "sums.yaml").write_text(
        "task: sums\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: 0\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    outcome = alignctl(
        *("eval", "lm-eval", model, tmp_path / "mg", "--tasks", "sums", "--json"),
        *("--include-path", data.parent, "--output", tmp_path / "out", "limit=10"),
    )
    assert outcome.code == 0, outcome.text
    found = json.loads(outcome.out)["models"]
    assert found["hf"]["results"]["sums"]["sample_len"] == 10
    assert found["hf"]["results"] == found["mg"]["results"]
    assert 0 <= found["hf"]["results"]["sums"]["acc,none"] <= 1
    outcome = alignctl("report", tmp_path / "out", "--output", tmp_path / "page.html")
    assert outcome.code == 0, outcome.text
    assert "sums acc" in (tmp_path / "page.html").read_text()
