"""docs/from-tutorials.md: what it sends people to is there."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from alignctl import cli
from alignctl.config.load import STAGES
from alignctl.config.problems import known_keys

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from-tutorials.md").read_text(encoding="utf-8")
_SEEN_THERE = """
CHATLEARN MEGATRON DATASET_ROOT DATASET_PATH TOKENIZER_PATH TOKENIZER_MODEL VOCAB_FILE VOCAB_PATH
LLAMA2_TOKENIZER_MODEL MEGATRON_BLOOM_CKPT_PATH MEGATRON_LLAMA2_CKPT_PATH LOAD_PATH SAVE_PATH
CHECKPOINT_PATH POLICY_LOAD REWARD_LOAD REWARD_LOAD_ITERATION TP PP model_size exp_name
USE_LEGACY_MODELS target_params_dtype customPortList createSvcForAllWorkers
convert_transformers_megatron_bloom.sh convert_hf_to_megatron.sh convert_megatron_to_hf.sh
bloom_sft.sh bloom_reward.sh run_7b1_7b1.sh train_sft_llama.sh train_reward_llama.sh
train_rlhf_llama.sh train_dpo_llama.sh train_online_dpo_llama.sh train_grpo_math_llama.sh
run_finetune_megatron_bloom.sh train_reward_model_bloom.py model_convertor_huggingface_megatron.sh
reward_model_convertor_megatron.sh sft_rm_model_prepare.sh run_rlhf.sh
ENV MEGATRON_PATH MEGATRON_PATCH_PATH MODEL_SIZE BATCH_SIZE GLOBAL_BATCH_SIZE LR MIN_LR SEQ_LEN PR
AC DO FL SP SAVE_INTERVAL PRETRAIN_CHECKPOINT_PATH OUTPUT_BASEPATH EXTRA_VOCAB_SIZE TRAIN_TOKENS
WARMUP_TOKENS clean_raw_text.py run_make_pretraining_dataset.sh run_pretrain_megatron_bloom.sh
run_text_generation_bloom.sh BS TOP_K TOP_P INPUT_SEQ_LEN OUTPUT_SEQ_LEN INPUT_FILE OUTPUT_FILE
TEMPERATURE REPETITION_PENALTY TOKENIZER
"""
"""Scripts, variables and arguments that the tutorials name."""


def here() -> list[str]:
    """What stands between backticks in the second cells of the tables."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", "|".join(row[1:]))]


@pytest.mark.parametrize("name", re.findall(r"\S+", _SEEN_THERE))
def test_every_script_and_variable_of_the_tutorials_has_its_row(name: str) -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|")]
    assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", row) for row in rows)


def test_every_key_exists() -> None:
    keys = {key for config in STAGES.values() for key in known_keys(config)}
    words = [word.partition("=")[0] for code in here() for word in code.split()]
    named = {word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word)}
    assert len(named) > 50
    assert named <= keys


def test_every_command_and_flag_exists() -> None:
    commands = _commands(typer.main.get_command(cli.app))
    flags = {
        option
        for command in commands.values()
        for each in (command, *_commands(command).values())
        for parameter in each.params
        for option in parameter.opts
    }
    words = [word for code in here() for word in code.split()]
    asked = {after for word, after in pairwise(words) if word == "alignctl"}
    assert asked <= set(commands)
    named = {word for word in words if word.startswith("--")}
    assert len(named) > 15
    assert named <= flags


def _commands(group: Any) -> dict[str, Any]:
    """The commands below one."""
    found: dict[str, Any] = getattr(group, "commands", {})
    return found
