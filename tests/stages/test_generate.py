"""`alignctl generate` as a user starts it, and as an operating system ends it."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests import smollm2, tiny
from tests.commands import alignctl, descendants, kill_tree, start, wait_until
from tests.rollouts.jobs import make_models

pytestmark = pytest.mark.ci

_SHORT = ("max_new_tokens=16", "max_prompt_length=40", "kv_cache_gib=0.05")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_models(tmp_path_factory.mktemp("models")) / "llama-gqa"
    return tiny.write_tokenizer(folder)


@pytest.mark.slow
def test_a_kill_costs_only_what_was_under_way(model: Path, tmp_path: Path) -> None:
    """The resumed file is, byte by byte, one that was written without interruption."""
    rows = [{"query": f"{a} and {3 * a % 7}", "id": a} for a in range(400)]
    data = tiny.write_rows(tmp_path / "prompts.jsonl", rows)
    out = tmp_path / "answers.jsonl"
    command: tuple[object, ...] = (
        *("generate", "--load", model, "--data", data, "--output", out, "temperature=1.0"),
        *("batch=4", *_SHORT),
    )
    process = start(*command)
    wait_until(lambda: sum(p.stat().st_size for p in tmp_path.glob(".*.partial")), process)
    kill_tree(process)
    (partial,) = tmp_path.glob(".*.partial")
    before = partial.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert 0 < kept.count(b"\n") < 400
    with partial.open("ab") as stream:
        stream.write(b'{"query": "half a')
    assert not out.exists()
    outcome = alignctl(*command)
    assert outcome.code == 0, outcome.text
    assert f"resuming: {kept.count(chr(10).encode()):,} prompts were answered before" in outcome.err
    assert out.read_bytes().startswith(kept)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in found] == list(range(400))
    assert len({row["response"] for row in found}) > 300
    assert outcome.out == f"{out}\n"
    # What was asked and answered is nowhere in the words, nor in the description beside it.
    told = outcome.err + Path(f"{out}.info.json").read_text()
    assert not [row for row in found if row["query"] in told]


@pytest.mark.slow
def test_an_interrupted_file_is_that_of_an_uninterrupted_run(model: Path, tmp_path: Path) -> None:
    rows = [{"query": f"{a} and {3 * a % 7}"} for a in range(60)]
    data = tiny.write_rows(tmp_path / "prompts.jsonl", rows)
    shared = ("generate", "--load", model, "--data", data, "temperature=1.0", *_SHORT)
    whole = tmp_path / "whole.txt"
    assert alignctl(*shared, "--output", whole).code == 0
    info = json.loads(Path(f"{whole}.info.json").read_text())
    lines = whole.read_bytes().splitlines(keepends=True)
    part = tmp_path / f".part.txt.{info['key'][:16]}.partial"
    part.write_bytes(b"".join(lines[:37]))
    assert alignctl(*shared, "--output", tmp_path / "part.txt").code == 0
    assert (tmp_path / "part.txt").read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_ranks_say_what_one_says(model: Path, tmp_path: Path) -> None:
    """Token for token; one that is lost ends the other, and what was answered is kept."""
    rows = [{"query": f"{a} and {3 * a % 7}"} for a in range(400)]
    data = tiny.write_rows(tmp_path / "prompts.jsonl", rows)
    shared = ("generate", "--load", model, "--data", data, *_SHORT)
    assert alignctl(*shared, "--output", tmp_path / "one.jsonl").code == 0
    command = (*shared, "--output", tmp_path / "two.jsonl", "tp=2")
    process = start(*command, "batch=2")
    wait_until(lambda: sum(p.stat().st_size for p in tmp_path.glob(".*.partial")), process)
    os.kill(follower_of(process.pid), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    outcome = alignctl(*command)
    assert outcome.code == 0, outcome.text
    assert "resuming: " in outcome.err
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def follower_of(pid: int) -> int:
    """The second rank; vLLM and Python have helpers of their own."""
    [found] = [
        each
        for each in descendants(pid)
        if b"alignctl.evaluation.tp_worker" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_smollm2_says_what_it_says_in_transformers(penalty: float, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = smollm2.write(tmp_path / "hf")
    texts = ["The capital of France is", "Water boils at", "def fibonacci(n):", "Once upon a time"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    knobs = ("max_new_tokens=40", "max_prompt_length=64", f"repetition_penalty={penalty}")
    outcome = alignctl(
        *("generate", "--load", folder, "--data", tmp_path / "prompts.txt"),
        *("--output", tmp_path / "answers.jsonl", *knobs),
    )
    assert outcome.code == 0, outcome.text
    rows = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from transformers import AutoTokenizer

    from alignctl.data.tokenizer import load_tokenizer

    tokenizer, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for row, text in zip(found, texts, strict=True):
        prompt = theirs(text).input_ids
        tokens = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=tokenizer.eos_id,
        )[0, len(prompt) :].tolist()
        assert row["response"] == tokenizer.decode_answer(tokens)
        assert row["num_tokens"] == len(tokens)
    assert len({row["response"] for row in found}) == len(texts)
