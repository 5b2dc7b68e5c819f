"""Tokens in the place of steps, and what the sections of `pretrain` must agree on."""

from pathlib import Path

import pytest

from alignctl.config.presets.load import resolve
from alignctl.config.pretrain import PretrainConfig
from alignctl.errors import UserError

OUTPUT = {"output": Path("runs/x")}


def config(*overrides: str, preset: str = "bloom-7b") -> PretrainConfig:
    return resolve(PretrainConfig, preset, OUTPUT, overrides)


def test_the_tutorials_million_tokens_are_122_steps_of_which_12_warm_up() -> None:
    """PAI's script divides whole numbers: 1000000 // (32 x 256) and 100000 // (32 x 256).

    The preset has the share, 0.1, and the tokens say the same.
    """
    found = config()
    assert found.tokens_per_step == 32 * 256
    assert found.total_steps(num_sequences=1) == 122
    assert found.schedule.warmup(122) == 12
    assert config("optimizer.warmup_tokens=100000").schedule.warmup(122) == 12
    assert found.schedule.lr == found.optimizer.lr == 1e-5
    assert (found.optimizer.beta1, found.optimizer.beta2, found.optimizer.weight_decay) == (
        *(0.9, 0.95),
        0.1,
    )


def test_steps_and_epochs_count_as_elsewhere() -> None:
    """The preset's tokens give way to them."""
    assert config("train.steps=30").total_steps(1000) == 30
    assert config("train.epochs=2").total_steps(100) == 7  # ceil(200 / 32)
    assert config("optimizer.warmup_steps=3").schedule.warmup(30) == 3
    assert config("optimizer.warmup_tokens=0").schedule.warmup(30) == 0


def test_the_trained_model_has_the_extra_rows() -> None:
    found = config("extra_vocab_size=20")
    assert found.model.vocab_size == 250880
    assert found.architecture.vocab_size == 250900


def test_a_blend_is_paths_with_weights() -> None:
    found = config("data.blend={data/zh: 0.7, data/en: 3}")
    assert found.data.blend == {Path("data/zh"): 0.7, Path("data/en"): 3.0}
    assert PretrainConfig.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.blend={a: many}"], "data.blend.a must be a number; found 'many'"),
        (["data.blend={a: 0}"], "data.blend.a must be greater than 0; found 0"),
        (["data.blend={a: .nan}"], "data.blend.a must be a finite number; found nan"),
        (["data.blend=[0.7, a]"], "data.blend must be a mapping, such as {name: value}"),
        (["data.blend={a: 1}", "data.train=b"], "both of data.train b and data.blend set"),
        (["data.blend={}"], "data.blend is empty"),
        (
            ["data.blend={a: 1}", "train.epochs=1"],
            "train.epochs 1.0 is not defined with data.blend",
        ),
        (["data.split=98/2/0"], "data.split '98/2/0' is not three shares"),
        (["data.split=98,2"], "data.split '98,2' is not three shares"),
        (["data.split=0,100,0"], "of which the first is not 0"),
        (["data.split=98,-2,0"], "data.split '98,-2,0' is not three shares"),
        (["train.steps=3", "train.epochs=1"], "both of train.steps and train.epochs set"),
        (["train.tokens=null"], "none of train.steps, train.epochs and train.tokens set: give"),
        (["train.tokens=8191"], "train.tokens 8191 is less than one step of batch.global_batch"),
        (
            ["train.steps=9", "optimizer.warmup_steps=12"],
            "optimizer.warmup_steps 12 is not less than the 9 steps of train.steps: lower it, or "
            "give a share of the steps in its place, such as optimizer.warmup_fraction=0.1",
        ),
        (
            ["optimizer.warmup_tokens=1000000"],
            "optimizer.warmup_tokens 1000000, 122 steps, is not less than the 122 steps of "
            "train.tokens: lower it, or give a share",
        ),
        (
            ["optimizer.warmup_tokens=1000000", "optimizer.warmup_fraction=0.1"],
            "optimizer.warmup_fraction 0.1 and optimizer.warmup_tokens 1000000: give one",
        ),
        (["extra_vocab_size=-1"], "extra_vocab_size must be at least 0; found -1"),
        (["extra_vocab_size=1", "lora.rank=4"], "extra_vocab_size 1 has no place with lora"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        config(*overrides)
    assert words in caught.value.message
    assert caught.value.exit_code == 2
