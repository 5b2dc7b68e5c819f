"""A tiny Llama from Hugging Face through every kind of training and back, on two CPU processes.

    python examples/demo.py            (make demo; with two more models: make demo-all)

Makes a model with random weights, a tokenizer and questions, then runs the same commands that
larger models get, and asks the result questions that it has not seen. The Llama then becomes a
reward model, and a policy by DPO, on pairs of right sums and of sums with the carry forgotten, and
learns from its own answers to small sums, by rlhf, online-dpo and grpo. Half of what it was
fine-tuned on is wrong in the same way, so that there is something to learn. The folder is made
afresh each time. The exit code is that of the first command that fails, or 1 when a model does not
answer better than it did before, or does not tell right from wrong.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from arithmetic import (
    CHAT_TEMPLATE,
    Addition,
    asked,
    chat_pairs,
    chats,
    question_pairs,
    questions,
    small,
    split,
    wordings,
    write_rows,
)
from outcome import Done, PairVerdict, PolicyVerdict, Verdict, show
from rich.console import Console

from alignctl.config.presets.load import load_preset

SEED = 1234
NUM_HELD_OUT = 1000
NUM_VALIDATED = 300
"""Of them, in validations that count losses; enough, and quick."""
NUM_TOKENIZED = 1000
NUM_PAIRS = 1000
NUM_ASKED = 100
MAX_ANSWER_TOKENS = 32
FAST = ("train.steps=20", "optimizer.warmup_steps=5")
"""Knobs of a short demo: enough to run, and to get better."""
WRONG_SHARE = 0.5
"""Of the answers that the aligned model is fine-tuned on: something is left to be learned from
preferences, rewards and own answers."""
MINUTES = {"tiny-llama": 3, "tiny-bloom": 1, "tiny-llama-gqa": 2}
"""What a model's way takes on two idle cores."""
PHASES = ("rollout", "scoring", "training", "push")
MARKER = ".made-by-alignctl-demo"
"""Only a folder that holds this file is ever removed."""


@dataclass(frozen=True)
class Track:
    """One model's way through the demo."""

    preset: str
    data: str
    """The folder of rows below data/: questions or chats."""
    tp: int
    pp: int
    micro_batch_size: int
    """Half a batch keeps two pipeline stages busy; a whole one has fewer, larger exchanges."""
    pairs: str | None = None
    """The folder of preferences below data/, for a reward model and DPO."""
    prompts: str | None = None
    """The folder of prompts below data/, for the stages that learn from own answers."""


TRACKS = {
    track.preset: track
    for track in (
        Track(
            "tiny-llama",
            "mixed-questions",
            tp=2,
            pp=1,
            micro_batch_size=16,
            pairs="question-pairs",
            prompts="prompts",
        ),
        Track("tiny-bloom", "chats", tp=1, pp=2, micro_batch_size=8),
        Track("tiny-llama-gqa", "chats", tp=2, pp=1, micro_batch_size=16, pairs="chat-pairs"),
    )
}


ALIGNMENT = ("reward", "dpo")
"""The stages that learn from pairs; each starts from the fine-tuned model."""

ON_POLICY = {"rlhf": 12, "online-dpo": 15, "grpo": 20}
"""The stages that learn from their own answers, and for how many episodes: half the
preset's, which is enough to see it. They start from the fine-tuned model too. The reward model
scores them, of grpo the rule."""


@dataclass(frozen=True)
class Stage:
    """One command of a chain."""

    arguments: tuple[str, ...]
    """What follows `alignctl`."""
    output: Path
    describe: Callable[[Path], str]
    """Says from the output what was done."""


def chain(track: Track, home: Path, knobs: tuple[str, ...]) -> list[Stage]:
    """List the stages of one model, each of which starts from the output of an earlier one.

    Args:
        track: The model, its data and its layout.
        home: The demo's folder.
        knobs: `section.key=value` for the training.
    """
    here = home / track.preset
    preset = ("--preset", track.preset)
    layout = ("--tp", str(track.tp), "--pp", str(track.pp))
    fitting = (
        f"parallel.tp={track.tp}",
        f"parallel.pp={track.pp}",
        f"batch.micro_batch_size={track.micro_batch_size}",
    )
    hf, mg, sft, result = (here / name for name in ("hf", "mg", "sft", "hf-sft"))
    data = home / "data" / track.data
    stages = [
        Stage(
            ("convert-hf2mg", *preset, "--load", str(hf), "--save", str(mg), *layout),
            mg,
            lambda folder: f"Hugging Face -> Megatron-Core, {megabytes(folder)}",
        ),
        Stage(
            (
                *("sft", *preset, "--load", str(mg), "--data", str(data), "--output", str(sft)),
                *fitting,
                *knobs,
            ),
            sft,
            lambda folder: f"{describe_run(folder)} at TP {track.tp} x PP {track.pp}",
        ),
        Stage(
            ("convert-mg2hf", *preset, "--load", str(sft), "--save", str(result)),
            result,
            lambda folder: f"Megatron-Core -> Hugging Face, {megabytes(folder)}",
        ),
    ]
    for stage in ALIGNMENT if track.pairs else ():
        pairs = home / "data" / str(track.pairs)
        flags = ("--load", str(sft), "--data", str(pairs), "--output", str(here / stage))
        stages.append(
            Stage(
                (stage, *preset, *flags, *fitting, *knobs),
                here / stage,
                lambda folder: f"{describe_run(folder)} at TP {track.tp} x PP {track.pp}",
            )
        )
    for stage, episodes in ON_POLICY.items() if track.prompts else ():
        reward = () if stage == "grpo" else ("--reward-load", str(here / "reward"))
        prompts = ("--data", str(home / "data" / str(track.prompts)))
        output = ("--output", str(here / stage))
        stages.append(
            Stage(
                (
                    *(stage, *preset, "--load", str(sft), *reward, *prompts, *output),
                    *(f"train.steps={episodes}", *knobs),
                ),
                here / stage,
                describe_episodes,
            )
        )
    return stages


def main() -> int:
    """Run the demo; return the exit code."""
    options = parse_options()
    # On CPUs everywhere, and without the remark of DeepSpeed, which transformers imports, on that.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    terminal = Console(stderr=True)
    home: Path = options.folder
    knobs = ("train.log_interval=10", *(FAST if options.fast else ()))
    if problem := make_folder(home):
        terminal.print(f"error: {problem}", markup=False, style="red", soft_wrap=True)
        return 2
    announce(options.models, home, knobs, terminal)
    train, held_out = split(held_out=NUM_HELD_OUT, seed=SEED)
    write_data(home / "data", train, held_out)
    done: list[Done] = []
    verdicts: list[Verdict] = []
    pair_verdicts: list[PairVerdict] = []
    policy_verdicts: list[PolicyVerdict] = []
    for name in options.models:
        track = TRACKS[name]
        done.append(make_model(track, home, train))
        for stage in chain(track, home, knobs):
            finished, code = run(stage, track.preset, terminal)
            if code:
                return code
            done.append(finished)
        started = time.monotonic()
        verdicts.append(judge(track, home, held_out[:NUM_ASKED]))
        what = f"{NUM_ASKED} questions to transformers, before and after"
        done.append(Done(name, "(ask)", what, time.monotonic() - started, home / name / "hf-sft"))
        pair_verdicts += judge_pairs(track, home) if track.pairs else []
        policy_verdicts += judge_policies(track, home) if track.prompts else []
    show(done, verdicts, pair_verdicts, policy_verdicts)
    is_good = options.fast or (
        all(verdict.is_good for verdict in pair_verdicts)
        and all(verdict.is_good for verdict in policy_verdicts)
    )
    return 0 if is_good and all(verdict.is_better for verdict in verdicts) else 1


def parse_options() -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where all of it goes")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=TRACKS,
        default=["tiny-llama"],
        metavar="PRESET",
        help=f"of {', '.join(TRACKS)}; default: the first",
    )
    parser.add_argument("--fast", action="store_true", help="20 steps only: better, but not good")
    return parser.parse_args()


def announce(models: list[str], home: Path, knobs: tuple[str, ...], terminal: Console) -> None:
    """Say what will run, for how long about, and where its output goes."""
    for name in models:
        stages = " -> ".join(stage.arguments[0] for stage in chain(TRACKS[name], home, knobs))
        terminal.print(f"{name}: {stages}", markup=False, highlight=False)
    minutes = sum(MINUTES[name] for name in models)
    terminal.print(
        f"about {minutes} minutes on two idle cores; all of it goes to {home}, and a table ends it",
        markup=False,
        highlight=False,
    )


def make_folder(home: Path) -> str | None:
    """Empty the demo's folder; return what keeps it from doing that."""
    if home.exists() and any(home.iterdir()) and not (home / MARKER).is_file():
        return f"{home} holds something that this demo did not make; give another --folder"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / MARKER).touch()
    return None


def write_data(folder: Path, train: list[Addition], held_out: list[Addition]) -> None:
    """Write the same sums in two schemas, a folder each, and pairs of answers to some of them."""
    for role, sums in (("train", train), ("validation", held_out)):
        write_rows(folder / "prompts" / f"{role}.jsonl", asked(small(sums), seed=SEED))
        sums = sums[:NUM_VALIDATED] if role == "validation" else sums
        pairs = sums[:NUM_PAIRS]
        write_rows(folder / "question-pairs" / f"{role}.jsonl", question_pairs(pairs, seed=SEED))
        write_rows(folder / "chat-pairs" / f"{role}.jsonl", chat_pairs(pairs, seed=SEED))
        mixed = questions(sums, seed=SEED, wrong_share=WRONG_SHARE)
        write_rows(folder / "questions" / f"{role}.jsonl", questions(sums, seed=SEED))
        write_rows(folder / "mixed-questions" / f"{role}.jsonl", mixed)
        write_rows(folder / "chats" / f"{role}.jsonl", chats(sums, seed=SEED))


def make_model(track: Track, home: Path, train: list[Addition]) -> Done:
    """Write a model with random weights and a tokenizer of the training rows."""
    from tiny_models import train_tokenizer, write_model

    started = time.monotonic()
    model = load_preset(track.preset).model
    texts = wordings(train[:NUM_TOKENIZED])
    tokenizer = train_tokenizer(texts, vocab_size=model.vocab_size)
    if track.data == "chats":
        tokenizer.chat_template = CHAT_TEMPLATE
    folder = home / track.preset / "hf"
    count = write_model(folder, model, tokenizer, seed=SEED)
    what = f"random weights, {count / 1e6:.2f}M; {len(tokenizer)} tokens"
    return Done(track.preset, "(start)", what, time.monotonic() - started, folder)


def run(stage: Stage, model: str, terminal: Console) -> tuple[Done, int]:
    """Run a command with its own output visible; return what it did, and its exit code."""
    terminal.print(f"\n$ alignctl {shlex.join(stage.arguments)}", style="bold", soft_wrap=True)
    started = time.monotonic()
    interrupts: list[int] = []
    # Ctrl-C reaches the command too, and that one knows how to stop: wait for it.
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    command = Path(sys.executable).with_name("alignctl")
    code = subprocess.run([str(command), *stage.arguments], check=False).returncode
    signal.signal(signal.SIGINT, before)
    code = 130 if interrupts else code
    if code:
        terminal.print(f"the demo ends here: exit code {code}", style="red")
    what = "" if code else stage.describe(stage.output)
    return Done(model, stage.arguments[0], what, time.monotonic() - started, stage.output), code


def megabytes(folder: Path) -> str:
    """Measure the size of a folder, in MB."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e6:.1f} MB"


def metrics_of(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    """Read the rows of one kind that a run has recorded."""
    lines = (run_folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def describe_run(folder: Path) -> str:
    """Describe steps and speed of a training run."""
    rows = metrics_of(folder, "train")
    speed = median(row["tokens_per_second"] for row in rows)
    return f"{rows[-1]['step']} steps, {speed:,.0f} tokens/s"


def describe_episodes(folder: Path) -> str:
    """Describe the episodes of an on-policy run, and where their time went."""
    rows = metrics_of(folder, "train")
    parts = [f"{name} {median(row[f'seconds_{name}'] for row in rows):.2f} s" for name in PHASES]
    return f"{rows[-1]['step']} episodes: {', '.join(parts)}"


def judge_policies(track: Track, home: Path) -> list[PolicyVerdict]:
    """Measure the gain of each on-policy stage: held-out answers, scores, distance."""
    found = []
    for stage in ON_POLICY:
        folder = home / track.preset / stage
        validations, rows = metrics_of(folder, "validation"), metrics_of(folder, "train")
        found.append(
            PolicyVerdict(
                track.preset,
                stage,
                accuracy=(validations[0]["accuracy"], validations[-1]["accuracy"]),
                score=(validations[0]["score"], validations[-1]["score"]),
                kl=rows[-1].get("kl"),
            )
        )
    return found


def judge(track: Track, home: Path, asked: list[Addition]) -> Verdict:
    """Compare the trained model with the one it started from, on sums that neither has seen."""
    from tiny_models import replies

    here = home / track.preset
    rows = metrics_of(here / "sft", "validation")
    texts = [each.question() for each in asked]
    before = replies(here / "hf", texts, max_new_tokens=MAX_ANSWER_TOKENS)
    after = replies(here / "hf-sft", texts, max_new_tokens=MAX_ANSWER_TOKENS)
    return Verdict(track.preset, rows[0], rows[-1], asked, before, after)


def judge_pairs(track: Track, home: Path) -> list[PairVerdict]:
    """Measure how well each stage tells right answers from wrong ones that it has not seen."""
    found = []
    for stage in ALIGNMENT:
        rows = metrics_of(home / track.preset / stage, "validation")
        before, after = rows[0]["accuracy"], rows[-1]["accuracy"]
        found.append(PairVerdict(track.preset, stage, before, after))
    return found


if __name__ == "__main__":
    sys.exit(main())
