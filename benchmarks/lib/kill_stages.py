"""What kills.py kills: every stage as a command of a few seconds, and what such a run leaves."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import commands, tiny, tiny_on_policy

SAVED = "checkpoints/.iter_*.partial"
"""What a checkpoint is called while it is written, in a run folder."""

_LAST = "written"
"""The last of the inputs."""


@dataclass(frozen=True)
class Stage:
    """A command, which is given the output to write.

    Attributes:
        name: What the table calls it.
        words: The command, without its output.
        flag: What names the output.
        output: Name of the output, in an empty folder of its own.
        saves: What is there while it writes something that is to count, as patterns in that folder.
        finished: File or folder in there that says that all is done.
        kills: How many of a hundred.
    """

    name: str
    words: tuple[object, ...]
    flag: str
    output: str
    saves: tuple[str, ...]
    finished: str
    kills: int

    def command(self, folder: Path) -> list[object]:
        """List the arguments of `alignctl`."""
        return [*self.words, self.flag, folder / self.output]


def stages(inputs: Path) -> list[Stage]:
    """List all stages, after their inputs are written.

    Args:
        inputs: A folder for models, data and presets; what an earlier call has written serves.
    """
    if not (inputs / _LAST).exists():
        _write_inputs(inputs)
    return [
        *_preparations(inputs),
        *_conversions(inputs),
        *_training(inputs),
        *_asking(inputs),
        *_on_policy(inputs),
    ]


def _write_inputs(inputs: Path) -> None:
    _write_texts(inputs)
    _write_large_model(inputs / "large")
    converted = commands.alignctl(
        *("convert-hf2mg", "--load", inputs / "large", "--save", inputs / "megatron"),
        *("--verify", "none"),
    )
    assert converted.code == 0, converted.text
    tiny.write_model(inputs / "hf")
    tiny.write_rows(inputs / "rows.jsonl")
    tiny.write_pairs(inputs / "pairs.jsonl")
    tiny.write_corpus(inputs / "corpus")
    preset = tiny.preset()
    preset["model"] |= {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    for name in ("sft", "reward", "dpo", "pretrain"):
        preset[name]["train"] = {"steps": 8, "eval_interval": 4}
        preset[name]["checkpoint"] = {"save_interval": 2}
    tiny.write_preset(inputs / "tiny.yaml", **preset)
    tiny_on_policy.write(inputs / "on_policy")
    (inputs / _LAST).touch()


def _write_texts(inputs: Path) -> None:
    """Write documents of random words, of which every tenth comes twice, and pairs as HH's."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(chance.choices(words, k=chance.randint(20, 200))) for _ in range(8_000)]
    rows = [
        {"text": text} for number, text in enumerate(texts) for _ in range(1 + (number % 10 < 1))
    ]
    tiny.write_rows(inputs / "texts.jsonl", rows)
    asked = [f"\n\nHuman: {text}\n\nAssistant: " for text in texts]
    pairs = [{"chosen": f"{each}yes", "rejected": f"{each}no"} for each in asked]
    tiny.write_rows(inputs / "hh" / "train.jsonl", pairs)


def _write_large_model(folder: Path) -> None:
    """Write a Llama of 300 MB, whose conversion takes a while."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=4,
        hidden_size=1024,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=3072,
        max_position_embeddings=64,
        vocab_size=8000,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100MB")
    tiny.write_tokenizer(folder)


def _preparations(inputs: Path) -> Iterator[Stage]:
    texts = inputs / "texts.jsonl"
    tokenizer = ("--tokenizer", inputs / "hf", "--append-eod", "--workers", 2)
    yield Stage(
        "prepare tokenize",
        ("prepare", "tokenize", texts, *tokenizer),
        "--output",
        "corpus",
        (".corpus.partial/index", ".corpus.partial/state.json", "corpus.bin", "corpus.idx"),
        "corpus.json",
        8,
    )
    others = {"clean": (texts, "--workers", 2), "hh": (inputs / "hh",)}
    for name, words in others.items():
        yield Stage(
            f"prepare {name}",
            ("prepare", name, *words),
            "--output",
            "rows",
            (".rows.*partial",),
            "rows",
            5,
        )


def _conversions(inputs: Path) -> Iterator[Stage]:
    saves = (".out.*partial", ".out.*partial/*")
    hf2mg = ("convert-hf2mg", "--load", inputs / "large", "--verify", "none")
    legacy = ("--format", "legacy", "--tp", 2, "--pp", 2)
    yield Stage("convert-hf2mg", hf2mg, "--save", "out", saves, "out", 14)
    yield Stage("convert-hf2mg legacy", (*hf2mg, *legacy), "--save", "out", saves, "out", 8)
    mg2hf = ("convert-mg2hf", "--load", inputs / "megatron", "--verify", "none")
    yield Stage(
        "convert-mg2hf", (*mg2hf, "--max-shard-size", "20MB"), "--save", "out", saves, "out", 14
    )


def _training(inputs: Path) -> Iterator[Stage]:
    pairs = "pairs.jsonl"
    data = {"pretrain": "corpus", "sft": "rows.jsonl", "reward": pairs, "dpo": pairs}
    for name, file in data.items():
        words = (name, "--preset", inputs / "tiny.yaml", "--load", inputs / "hf")
        ranks = 2 if name in ("sft", "dpo") else 1
        words += ("--data", inputs / file, f"launch.nproc_per_node={ranks}")
        yield _run(name, words, 7)


def _on_policy(inputs: Path) -> Iterator[Stage]:
    folder = inputs / "on_policy"
    knobs = ("train.steps=4", "checkpoint.save_interval=2")
    extra = {
        "rlhf": ("value.warmup_steps=2", "launch.nproc_per_node=2"),
        "grpo": ("launch.nproc_per_node=1",),
        "online-dpo": ("launch.nproc_per_node=1",),
    }
    for name, more in extra.items():
        # The output comes last in the command of the tests, which is given one here.
        [*words, _, _] = tiny_on_policy.command(name, folder, Path())
        yield _run(name, (*words, *knobs, *more), 3)


def _run(name: str, words: tuple[object, ...], kills: int) -> Stage:
    return Stage(name, words, "--output", "run", (f"run/{SAVED}",), "run/result.json", kills)


def _asking(inputs: Path) -> Iterator[Stage]:
    folder = inputs / "on_policy"
    sums = folder / "prompts.jsonl"
    knobs = ("max_new_tokens=16", "max_prompt_length=40", "kv_cache_gib=0.05", "temperature=1.0")
    load = ("--load", folder / "hf")
    yield Stage(
        "generate",
        ("generate", *load, "--data", sums, *knobs, "batch=4"),
        "--output",
        "answers.jsonl",
        (".answers.*.partial",),
        "answers.jsonl",
        5,
    )
    yield Stage(
        "eval",
        ("eval", "math", folder / "hf", "--data", sums, *knobs, "batch=4"),
        "--output",
        "eval",
        ("eval/.hf.jsonl.*.partial",),
        "eval/result.json",
        4,
    )
