"""A real model behind vLLM's own server as the judge."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignctl.evaluation.mt_bench.judge_prompts import FORMS
from alignctl.evaluation.mt_bench.questions import QUESTIONS, find_bundled
from tests import smollm2
from tests.commands import alignctl, kill_tree, wait_until
from tests.evaluation.texts import write_answers

JUDGE = "smollm2-135m"
IDS = [json.loads(line)["question_id"] for line in find_bundled(QUESTIONS).read_text().splitlines()]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("judge")
    model = smollm2.write(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `vllm serve`: vLLM's package for CPUs has no metadata of the name that it looks for.
    server = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model))
    flags = ("--served-model-name", JUDGE, "--host", "127.0.0.1", "--port", str(port))
    limits = ("--dtype", "float32", "--max-model-len", "4096", "--max-num-seqs", "8")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*server, *flags, *limits, "--enforce-eager"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
    root = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_there(f"{root}/health"), process)
        yield f"{root}/v1"
    finally:
        kill_tree(process)


def is_there(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_ratings_of_a_small_judge_that_is_kept_to_the_form_all_count(
    url: str, tmp_path: Path
) -> None:
    """Four questions of two turns, two models: 16 ratings from 1 to 10; the second time, none."""
    models = [write_answers(tmp_path / f"{name}.jsonl", IDS, name) for name in ("sft", "dpo")]
    form = json.dumps({"regex": FORMS["single"]})
    command = (
        *("eval", "mt-bench", *models, "--limit", 4, "--output", tmp_path / "out", "--json"),
        *("--judge-model", JUDGE, "--judge-url", url),
        *("--judge-parameter", f"structured_outputs={form}"),
    )
    outcome = alignctl(*command)
    assert outcome.code == 0, outcome.text
    assert "16 new judgments" in outcome.err
    for found in json.loads(outcome.out)["models"].values():
        assert (found["failures"], found["judgments"]) == (0, 8)
        assert 1 <= found["average"] <= 10
        assert all(1 <= mark <= 10 for mark in found["categories"].values())
    again = alignctl(*command)
    assert "16 judgments by smollm2-135m, all of them known" in again.err
    assert again.out == outcome.out
