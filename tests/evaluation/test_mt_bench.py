import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl.evaluation.mt_bench.questions import PROMPTS, QUESTIONS, find_bundled
from tests.commands import Outcome, alignctl, kill_tree, start, wait_until
from tests.evaluation.judge_server import MODEL, Act, Judge, serving
from tests.evaluation.texts import write_answers, write_rows

KEY = "sk-test-9f8e7d6c5b4a"
QUESTION_ROWS = [
    json.loads(line) for line in find_bundled(QUESTIONS).read_text("utf-8").splitlines()
]
IDS = [row["question_id"] for row in QUESTION_ROWS]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and a client that would like to log everything."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_LOG", "debug")


def luck(prompt: str) -> int:
    """From 0 to 99, always the same for a prompt."""
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 100


def words(prompt: str) -> str:
    """What the judge thinks of an answer: a rating, none, or one that is out of range."""
    chance = luck(prompt)
    if chance < 8:
        return "I would rather not say."
    return f"Rating: [[{11 + chance}]]" if chance < 14 else f"Rating: [[{1 + chance % 10}]]"


def hostile(prompt: str, number: int) -> Act:
    """Every second prompt meets trouble first, of seven kinds."""
    if number == 1 and luck(prompt) % 2:
        return (
            Act(429, body=b'{"error": {"message": "slow"}}', headers={"Retry-After": "0.01"}),
            Act(500, body=b"boom", headers={"Retry-After": "0.01"}),
            Act(None),
            Act(is_cut=True),
            Act(body=b'{"choices": [{"mess'),
            Act(body=b"{}"),
            Act(seconds=0.1, text=words(prompt)),
        )[luck(prompt) // 2 % 7]
    return Act(text=words(prompt), seconds=0.01)


def arguments(server: Judge, output: Path, *models: Path) -> list[object]:
    judge = ["--judge-model", MODEL, "--judge-url", server.url, "--concurrency", 16]
    return ["eval", "mt-bench", *models, *judge, "--output", output]


def two_models(folder: Path) -> list[Path]:
    return [write_answers(folder / f"{name}.jsonl", IDS, name) for name in ("sft", "dpo")]


def judged(server: Judge, model: str) -> list[str]:
    """The prompts with answers of a model; the first answer is part of the second prompt, too."""
    return [prompt for prompt in server.answered if f"\n{model} " in prompt]


def check_secrets(outcome: Outcome, folder: Path) -> None:
    """Neither the key nor a prompt is in what was written, anywhere."""
    prompts = [json.loads(line) for line in find_bundled(PROMPTS).read_text("utf-8").splitlines()]
    secrets = [KEY, "impartial judge", *(row["turns"][0] for row in QUESTION_ROWS)]
    secrets += [row["prompt_template"] for row in prompts]
    places = [outcome.out, outcome.err]
    places += [path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()]
    assert len(places) > 3
    assert not [secret for secret in secrets for place in places if secret in place]


def test_a_hostile_judge_and_kill_9_lose_nothing_and_nothing_is_judged_twice(
    tmp_path: Path,
) -> None:
    """96 judgments, killed with a part of them done; a second start asks for the rest only."""
    models = two_models(tmp_path / "answers")
    out = tmp_path / "out"
    cache = out / ".cache" / "judge"
    with serving(hostile) as server:
        command = [*arguments(server, out / "bench", *models), "--limit", 24]
        process = start(*command)
        wait_until(lambda: lines(cache) > 20, process)
        shown = Path(f"/proc/{process.pid}/cmdline").read_text()
        kill_tree(process)
        while server.at_once:  # requests of the dead, which the server does not know to be dead
            time.sleep(0.01)
        kept, answered = lines(cache), server.answered.copy()
        # What the server answered while the process died is lost, and nothing else.
        assert kept <= sum(answered.values()) <= kept + 16
        assert not (out / "bench").exists()
        with next(cache.iterdir()).open("ab") as stream:
            stream.write(b'{"key": "half a li')
        outcome = alignctl(*command)
        assert outcome.code == 0, outcome.text
        assert sum((server.answered - answered).values()) == 96 - kept
        assert max(server.answered.values()) <= 2
        assert f"96 judgments by {MODEL}, {kept} of them known; {96 - kept} to ask" in outcome.err
        again = alignctl(*command, "--json")
        assert sum((server.answered - answered).values()) == 96 - kept
    assert KEY not in shown
    check_secrets(outcome, out)
    result = json.loads(again.out)
    assert result == json.loads((out / "bench" / "mt_bench.json").read_text("utf-8"))
    for name in ("sft", "dpo"):
        found = result["models"][name]
        chances = [luck(prompt) for prompt in judged(server, name)]
        ratings = [1 + chance % 10 for chance in chances if chance >= 14]
        assert len(chances) == 48
        assert found["average"] == pytest.approx(sum(ratings) / len(ratings))
        assert found["failures"] == 48 - len(ratings)
        assert found["interval"][0] < found["average"] < found["interval"][1]
    table = [line.split() for line in outcome.out.splitlines()]
    assert table[0] == ["Metric", "sft", "dpo"]
    assert table[9] == ["Avg", *(f"{result['models'][m]['average']:.2f}" for m in ("sft", "dpo"))]


def lines(cache: Path) -> int:
    """Replies on the disk."""
    return sum(file.read_bytes().count(b"\n") for file in cache.glob("*.jsonl"))


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Runs a command in this process, which is faster."""
    from alignctl import cli

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["alignctl", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return call


def test_pairs_are_compared_in_both_orders(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """A judge that likes dpo, but in the second turn always what it reads first."""

    def act(prompt: str, number: int) -> Act:
        if "dpo 81 two" in prompt or "two\n" in prompt:
            return Act(text="[[A]]")
        first = min(("sft", "dpo"), key=lambda name: prompt.index(f"\n{name} "))
        return Act(text="[[A]]" if first == "dpo" else "[[B]]")

    with serving(act) as server:
        models = two_models(tmp_path)
        words = arguments(server, tmp_path / "out", *models)
        outcome = run(*words, "--pairwise", "--limit", 8)
    assert outcome.code == 0, outcome.text
    result = json.loads((tmp_path / "out" / "mt_bench_pairwise.json").read_text("utf-8"))
    found = result["models"]["dpo"]
    assert {name: found[name] for name in ("win", "tie", "loss", "disagreement")} == {
        "win": 8,
        "tie": 8,
        "loss": 0,
        "disagreement": 8,
    }
    assert found["average"] == 0.75
    table = [line.split() for line in outcome.out.splitlines()]
    assert table[0] == ["Against", "sft", "dpo"]
    assert ["Avg", "75%"] in table


def test_a_dry_run_tells_the_cost_and_asks_nothing(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    with serving(lambda prompt, number: Act()) as server:
        words = arguments(server, tmp_path / "out", *two_models(tmp_path / "answers"))
        prices = ("--prompt-price", 1, "--completion-price", 10)
        outcome = run(*words, *prices, "--dry-run", "--judge-parameter", "max_tokens=100")
    assert outcome.code == 0, outcome.text
    assert not server.keys
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers"]
    assert "320 judgments by tests/judge: about 130," in outcome.out
    # 130 thousand tokens at $1 and 320 x 100 at $10 a million: 0.13 + 0.32.
    assert "and at most 32,000 of replies: at most $0.45" in outcome.out


def test_judgments_that_are_missing_are_told_and_the_rest_is_kept(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    """One prompt gets no answer; then the judge recovers, and is asked for that one only."""
    broken = f"dpo {IDS[0]} two"
    with serving(lambda p, n: Act(500, body=b"") if broken in p and n < 3 else Act()) as server:
        words = arguments(server, tmp_path / "out", *two_models(tmp_path / "answers"))
        outcome = run(*words, "--limit", 8, "--attempts", 2)
        assert outcome.code == 1
        assert "error: 1 of 32 judgments are missing" in outcome.err
        assert "31 new judgments: 3,100 prompt tokens and 310 of replies" in outcome.err
        assert not (tmp_path / "out").exists()
        outcome = run(*words, "--limit", 8, "--attempts", 2)
        assert outcome.code == 0, outcome.text
    assert sum(server.answered.values()) == 32
    assert ["Avg", "5.00", "5.00"] in [line.split() for line in outcome.out.splitlines()]


@pytest.mark.parametrize(
    ("mode", "verdict"), [([], "Rating: [[7]]"), (["--pairwise"], "A is better. [[A]]")]
)
def test_a_judge_that_keeps_to_no_form_can_be_kept_to_it(
    mode: list[str], verdict: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    """The remedy is told as it has to be written; then it is no more."""
    with serving(lambda prompt, number: Act(text="Well.")) as server:
        words = arguments(server, tmp_path / "out", *two_models(tmp_path / "answers"))
        outcome = run(*words, *mode, "--limit", 8)
        told = outcome.err.partition("to the form with ")[2].splitlines()[0]
        flag, parameter = shlex.split(told)
        again = run(*words, *mode, "--limit", 8, flag, parameter)
    assert "judgments are without a rating" in outcome.err
    assert "are without a rating" not in again.err
    name, _, value = parameter.partition("=")
    form = re.compile(json.loads(value)["regex"])
    assert (flag, name) == ("--judge-parameter", "structured_outputs")
    assert form.fullmatch(verdict)
    assert form.fullmatch(f"It is\ngood. {verdict}")
    assert not form.fullmatch("Well.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", 0], "Invalid value for '--limit'"),
        (["--questions", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--judge-prompts", "answers/sft.jsonl"], "answers/sft.jsonl:1: not a judge prompt"),
        (["--references", "questions.jsonl"], "questions.jsonl:1: not an answer in FastChat's"),
        (["--questions", "questions.jsonl"], "1 of 1 questions have no answer"),
        (["--pairwise", "!answers/dpo.jsonl"], "a comparison needs two models"),
        (["nowhere"], "nowhere"),
        (["nowhere.jsonl"], "nowhere.jsonl: no such file of answers"),
        (["answers/sft.jsonl"], "answers/sft.jsonl: this model is there twice"),
        (["samples=2", "temperature=1"], "samples 2: one answer to a question is judged"),
        (["max_new_token=2"], "max_new_tokens"),
    ],
)
def test_what_a_user_got_wrong_is_told_before_anybody_is_asked(
    run: Callable[..., Outcome], tmp_path: Path, words: list[object], message: str
) -> None:
    two_models(tmp_path / "answers")
    row = {"question_id": "x1", "category": "poetry", "turns": ["A rhyme?", "Another?"]}
    write_rows(tmp_path / "questions.jsonl", [row])
    models = [f"answers/{name}.jsonl" for name in ("sft", "dpo")]
    models = [model for model in models if f"!{model}" not in words]
    with serving(lambda prompt, number: Act()) as server:
        usual = arguments(server, tmp_path / "out", *map(Path, models))
        outcome = run(*usual, *(word for word in words if not str(word).startswith("!")))
    assert outcome.code == 2, outcome.text
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not server.keys
