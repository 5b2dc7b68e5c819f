"""Exported reward models score texts of different lengths in one batch as each of them alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from alignctl.checkpoints.padding import settle
from tests import tiny

EOS, PAD = 2, 3
TEXTS = [[1, 70, 71, 72, 73, EOS], [1, 80, EOS], [1, 90, 91, EOS]]


def write(folder: Path, *, pad: int | None, token: str | None) -> Path:
    """A reward model, with its config's padding token and its tokenizer's."""
    tiny.write_tokenizer(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            settings.pop("pad_token", None)
            settings |= {"pad_token": token} if token else {}
            (folder / name).write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=tiny.VOCABULARY,
        num_labels=1,
        eos_token_id=EOS,
        pad_token_id=pad,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def scores(folder: Path) -> tuple[list[float], list[float]]:
    """Of a batch with padding on the right; and of each text alone, by its last token."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer.pad({"input_ids": TEXTS}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        together = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
        alone = [
            model.score(model.model(torch.tensor([text])).last_hidden_state[0, -1])
            for text in TEXTS
        ]
    return together[:, 0].tolist(), torch.cat(alone).tolist()


@pytest.mark.parametrize(
    ("pad", "token", "settled"),
    [
        (EOS, "</s>", PAD),  # there is a token for it, which nobody took
        (EOS, None, PAD),
        (EOS, "<unk>", 0),
        (None, None, PAD),
        (-1, None, PAD),
        (0, "<pad>", PAD),  # one would read the other's padding
        (0, "</s>", 0),
        (0, None, 0),
    ],
)
def test_config_and_tokenizer_agree_on_a_token_that_ends_no_text(
    pad: int | None, token: str | None, settled: int, tmp_path: Path
) -> None:
    folder = write(tmp_path, pad=pad, token=token)
    settle(folder, tiny.VOCABULARY)
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == settled
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == settled
    together, alone = scores(folder)
    assert together == pytest.approx(alone, abs=1e-6)


def test_a_token_that_ends_texts_pads_none(tmp_path: Path) -> None:
    """Why it is needed: transformers reads the token before the first of those that pad."""
    together, alone = scores(write(tmp_path, pad=EOS, token="</s>"))
    assert together != pytest.approx(alone, abs=1e-3)


def test_what_is_right_already_stays_byte_for_byte(tmp_path: Path) -> None:
    folder = write(tmp_path, pad=PAD, token="<pad>")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    settle(folder, tiny.VOCABULARY)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("pad", [EOS, None, -1, tiny.VOCABULARY])
def test_without_a_tokenizer_the_config_alone_is_settled(pad: int | None, tmp_path: Path) -> None:
    folder = write(tmp_path, pad=EOS, token=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    (folder / "tokenizer.json").unlink()
    settle(folder, tiny.VOCABULARY)
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 1
