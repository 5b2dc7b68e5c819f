"""GRPO: answers per second of alignctl and of TRL's GRPOTrainer, and where the time goes.

    python benchmarks/grpo.py                       # five minutes or so on two idle cores
    python benchmarks/grpo.py --repeats 3 --only alignctl
    python benchmarks/grpo.py --data train.jsonl    # questions of GSM8K, of their lengths

alignctl runs twice: prompts computed once, and for each answer. The same 30M policy, the same
reward model, the same prompts, as many answers of the same length to each, one update of AdamW for
each round of answers. Nothing is asserted.
"""

import re
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib import turns
from benchmarks.lib.prompts import draw_prompts, make
from benchmarks.lib.race import Contender, Run, json_lines, race, table
from benchmarks.lib.real_rows import read_questions
from benchmarks.lib.workload import Workload

BIN = Path(sys.executable).parent
RANKS = 2
PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 64, 128
LONGEST_PROMPT = 256
PHASES = ("rollout", "scoring", "training", "push")


def main() -> None:
    """Make the workload, run the contenders in turns, print the two tables."""
    parser = turns.flags(__doc__.split("\n", 1)[0], documents=64)
    parser.add_argument("--data", type=Path, help="questions of GSM8K, for their lengths")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-") as name:
        folder = Path(name)
        workload = Workload(
            folder=folder / "input",
            documents=options.documents,
            seq_length=LONGEST_PROMPT + NEW_TOKENS,
            sequences_per_step=PROMPTS * SAMPLES,
            documents_per_step=PROMPTS * SAMPLES,
            warm_up=options.warm_up,
            steps=options.steps,
        )
        questions = read_questions(options.data) if options.data else draw_prompts(PROMPT_TOKENS)
        mean = make(workload, questions, PROMPTS, SAMPLES, LONGEST_PROMPT, NEW_TOKENS)
        # A prompt's last token is read with each answer, an answer's last one by nobody.
        apart, needed = SAMPLES * (mean + NEW_TOKENS - 1), mean - 1 + SAMPLES * NEW_TOKENS
        print(
            f"{PROMPTS} prompts of {mean:.0f} tokens x {SAMPLES} answers of {NEW_TOKENS}, "
            f"{apart / needed:.2f} times the tokens that are needed; "
            f"{workload.warm_up} + {workload.steps} steps",
            flush=True,
        )
        contenders = [
            _alignctl(workload),
            _alignctl(workload, share_prompts=False),
            _trl("TRL, generate", workload, "generate"),
            _trl("TRL, vLLM", workload, "vllm"),
        ]
        contenders = [each for each in contenders if options.only in each.name]
        runs: dict[str, list[Run]] = {}
        phases: dict[str, list[dict[str, float]]] = {}
        for turn in range(options.repeats):
            for place, contender in enumerate(contenders):
                scratch = folder / f"{turn}-{place}"
                if turn and contender.name not in runs:
                    continue  # it did not run the first time
                try:
                    run = race(contender, scratch, warm_up=workload.warm_up, steps=workload.steps)
                except RuntimeError as error:
                    print(f"  {contender.name} does not run here: {_cause(error)}", flush=True)
                    continue
                runs.setdefault(contender.name, []).append(run)
                phases.setdefault(contender.name, []).extend(_phases(scratch)[workload.warm_up :])
        print(f"\n{_summary(contenders, runs)}\n\n{_split(phases)}")


def _alignctl(workload: Workload, *, share_prompts: bool = True) -> Contender:
    def command(folder: Path) -> list[str]:
        return [
            *(str(BIN / "alignctl"), "grpo", "--preset", str(workload.folder / "preset.yaml")),
            *("--load", str(workload.hf), "--reward-load", str(workload.folder / "reward")),
            *("--data", str(workload.folder / "prompts.jsonl")),
            *("--output", str(folder / "run"), "--nproc", str(RANKS)),
            f"batch.share_prompts={str(share_prompts).lower()}",
        ]

    name = "alignctl" if share_prompts else "alignctl, not shared"
    return Contender(name, (RANKS, 1), command, {}, turns.alignctl_steps)


def _trl(name: str, workload: Workload, engine: str) -> Contender:
    return turns.trl_contender(
        name,
        "trl_grpo",
        workload,
        ranks=RANKS,
        share=workload.documents_per_step // RANKS,
        micro_batch=SAMPLES,
        more=["--samples", str(SAMPLES), "--new-tokens", str(NEW_TOKENS), "--engine", engine],
    )


def _phases(folder: Path) -> list[dict[str, float]]:
    """Read the rows of the first rank, which have `seconds_PHASE`."""
    if (folder / "run").is_dir():
        rows = json_lines(folder / "run" / "metrics.jsonl")
        return [row for row in rows if row["kind"] == "train"]
    return json_lines(folder / "rank_0.jsonl")


def _cause(error: RuntimeError) -> str:
    """Find the last line of a traceback in a program's output."""
    lines = [line.rpartition("]: ")[2].strip() for line in str(error).splitlines()]
    return next((line for line in lines if re.match(r"\w*Error: ", line)), lines[-1])


def _summary(contenders: list[Contender], runs: dict[str, list[Run]]) -> str:
    peers = [name for name in runs if name.startswith("TRL")]
    speed = {
        name: statistics.median(run.tokens_per_second for run in found) / NEW_TOKENS
        for name, found in runs.items()
    }
    cores = {
        name: statistics.median(run.core_seconds for run in found) for name, found in runs.items()
    }
    fastest = max((speed[name] for name in peers), default=None)
    thriftiest = min((cores[name] for name in peers), default=None)
    head = ["", "ranks x threads", "answers/s", "ratio", "core s/1k tokens", "ratio", "GiB all"]
    rows = [head]
    for contender in contenders:
        if (found := runs.get(contender.name)) is None:
            continue
        name = contender.name
        memory = statistics.median(run.memory_sum for run in found) / 2**30
        rows.append(
            [
                name,
                "{} x {}".format(*contender.processes),
                f"{speed[name]:.2f}",
                f"{speed[name] / fastest:.2f}" if fastest else "-",
                f"{cores[name]:.2f}",
                f"{thriftiest / cores[name]:.2f}" if thriftiest else "-",
                f"{memory:.2f}",
            ]
        )
    return table(rows)


def _split(phases: dict[str, list[dict[str, float]]]) -> str:
    rows = [["seconds a step", *PHASES, "|log-prob difference|"]]
    for name, steps in phases.items():
        name_of_mismatch = "mismatch_mean_difference"
        known = [row[name_of_mismatch] for row in steps if name_of_mismatch in row]
        rows.append(
            [
                name,
                *(
                    f"{statistics.median(row.get(f'seconds_{phase}', 0.0) for row in steps):.2f}"
                    for phase in PHASES
                ),
                f"{statistics.median(known):.1e}" if known else "-",
            ]
        )
    return table(rows)


if __name__ == "__main__":
    main()
