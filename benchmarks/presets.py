"""How far each preset's stages go, beside the tutorials' scripts and an older version.

alignctl prepare hh harmless-base --output data/hh
python benchmarks/presets.py data/hh --tokenizer models/llama2-7b [--before REVISION]

What a step takes is counted in its batches, as the ranks are given them, of the first steps; what
the tutorials' scripts take is their own arithmetic: padded rows, tokenised prompt by prompt and
answer by answer. Passes are over 96,000 rows, whatever the number of rows in the folder.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from tokenizers import Tokenizer as Backend

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.pretrain import PretrainConfig
from alignctl.config.run import SFTConfig, TrainingConfig
from alignctl.data import order, preferences, sft
from alignctl.data.preference_store import PreferenceData
from alignctl.data.store import SFTData
from alignctl.data.tokenizer import load_tokenizer

ROWS = 96_000
STEPS = 40
"""Steps whose batches are counted."""

REPLICAS = {"llama2-7b": 2, "bloom-1b1": 2, "bloom-1b7": 2}
"""Data-parallel copies in the scripts on the GPUs that the tutorials name; of the others one."""
SOURCES = {"llama2-7b", "llama2-13b", "llama2-70b", "bloom-1b1", "bloom-1b7", "bloom-7b"}
"""Models of the tutorials; the scripts have no setting for the others."""


@dataclass(frozen=True)
class Course:
    """Rows that a run takes in all, and what an optimizer step learns from."""

    rows: float
    learned: float


def tutorial(name: str, stage: str, folder: Path, tokenizer: Path) -> Course | None:
    """Compute what the scripts of ChatLearn and PAI-Megatron-Patch do.

    ChatLearn is of v0.2.0 for Bloom, of v1.0.3 for Llama 2.
    """
    is_llama = name.startswith("llama2")
    if name not in SOURCES or (stage not in ("pretrain", "sft", "reward", "rlhf") and not is_llama):
        return None
    batch = 64 * REPLICAS.get(name, 1)
    if stage == "pretrain":
        # TRAIN_TOKENS // GLOBAL_BATCH_SIZE // SEQ_LEN steps, every token learned.
        return None if is_llama else Course(1_000_000 // 32 // 256 * 32 * 256, 32 * 256)
    if stage == "sft":
        return Course(1000 * batch, batch * mean(_answer_tokens(folder, tokenizer, "response")))
    if stage == "reward":
        return Course((1000 if is_llama else 3600) * batch, 2 * batch)
    if stage == "dpo":
        both = [*_answer_tokens(folder, tokenizer, "response", "rejected")]
        return Course(200 * 1024, 128 * 2 * mean(both))
    if stage == "rlhf":
        return Course((200 if is_llama else 5000) * 1024, 128)
    return Course(200 * 1024 // 8, 128)


def _answer_tokens(folder: Path, tokenizer: Path, *keys: str) -> list[int]:
    """Count tokens of each answer with its end, as the scripts do: by the length of the prompt."""
    backend = Backend.from_file(str(tokenizer / "tokenizer.json"))
    file = folder / ("sft" if len(keys) == 1 else "alignment") / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        len(backend.encode(row["prompt"] + row[key]).ids)
        + 1
        - len(backend.encode(row["prompt"]).ids)
        for row in rows
        for key in keys
    ]


def counted(config: TrainingConfig, folder: Path, tokenizer: Path) -> Course:
    """Count what the batches of the first steps hold."""
    if isinstance(config, PretrainConfig):
        tokens = config.tokens_per_step
        return Course(config.total_steps(0) * tokens, tokens)
    if isinstance(config, OnPolicyConfig):
        answers = config.experience.epochs * config.samples_per_step / config.updates_per_step
        return Course(config.num_episodes(0) * config.experience.prompts, answers)
    data = _prepared(config, folder, tokenizer)
    replicas, batch = config.data_parallel_size, config.batch
    found = [
        each
        for step in range(STEPS)
        for rank in range(replicas)
        for each in order.train_batches(
            data.train,
            step=step,
            seed=config.train.seed,
            global_batch_size=batch.global_batch_size,
            micro_batch_size=batch.micro_batch_size,
            dp_rank=rank,
            dp_size=replicas,
            capacity=config.pack_capacity,
        )
    ]
    documents = sum(row >= 0 for each in found for row in each.rows) / STEPS
    targets = sum(each.num_targets for each in found) / STEPS
    steps = config.total_steps(data.train.num_sequences)
    if isinstance(config, SFTConfig):
        return Course(steps * documents, targets)
    return Course(steps * documents / 2, documents if config.stage == "reward" else targets)


def _prepared(config: TrainingConfig, folder: Path, tokenizer: Path) -> SFTData | PreferenceData:
    kind = {"sft": "sft", "reward": "reward", "dpo": "alignment"}[config.stage]
    out = Path(tempfile.gettempdir()) / "alignctl-presets"
    data: Any = config.data.model_copy(update={"train": folder / kind / "train.jsonl"})
    loaded, length = load_tokenizer(tokenizer), config.batch.seq_length
    if isinstance(config, SFTConfig):
        return SFTData.open(sft.prepare(data, length, loaded, out))
    return PreferenceData.open(preferences.prepare(data, length, loaded, out))


def before(revision: str, name: str, stage: str) -> TrainingConfig:
    """Read a stage of a preset as an older version had it: its batches, length and packing."""
    old = yaml.safe_load(_shown(revision, f"presets/{name}.yaml"))
    if "extends" in old:
        values = json.loads(_shown(revision, "tests/config/resolved.json"))
        old = {}
        for key, (usual, others) in list(values.items())[1:]:
            *sections, last = key.split(".")
            place = old
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = others.get(name, usual)
    old = old[stage]
    kept = {section: old[section] for section in ("batch", "train", "experience") if section in old}
    kept["data"] = {"packing": old["data"]["packing"]} if stage == "sft" else {}
    overrides = [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in kept.items()
        for key, value in values.items()
    ]
    return resolve(STAGES[stage], name, {"output": Path("runs")}, overrides)


def _shown(revision: str, file: str) -> bytes:
    command = ["git", "show", f"{revision}:{file}"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as `alignctl prepare hh` writes it")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--before", help="a revision of the repository to compare with")
    options = parser.parse_args()
    where = (options.folder, options.tokenizer)
    columns = ["tutorial", *(["before"] if options.before else []), "now"]
    heads = [f"{what}, {column}" for what in ("passes", "learned") for column in columns]
    print("| preset | stage | " + " | ".join(heads) + " |")
    print("|---" * (2 + len(heads)) + "|")
    for name in presets.names():
        for stage in STAGES:
            courses = [tutorial(name, stage, *where)]
            if options.before:
                courses.append(counted(before(options.before, name, stage), *where))
            config = resolve(STAGES[stage], name, {"output": Path("runs")})
            courses.append(counted(config, *where))
            passes = [f"{each.rows / ROWS:.2f}" if each else "-" for each in courses]
            if stage == "pretrain":
                passes = [f"{each.rows:,.0f} tokens" if each else "-" for each in courses]
            learned = [f"{each.learned:,.0f}" if each else "-" for each in courses]
            print(f"| {name} | {stage} | " + " | ".join([*passes, *learned]) + " |", flush=True)


if __name__ == "__main__":
    main()
