"""What is told about prepared prompts."""

from pathlib import Path

import numpy as np
import pytest

from alignctl.data.prompt_store import PromptData, PromptSummary, TokenLists
from alignctl.errors import UserError

SUMMARY = PromptSummary(
    rows=1240,
    dropped=30,
    cut=0,
    with_answer=1210,
    max_prompt_length=512,
    eval_funcs=("math_rule",),
    files=("a.jsonl",),
    train=1200,
    train_tokens=120_600,
    validation=10,
)


def test_the_summary_counts_every_row() -> None:
    assert SUMMARY.describe() == (
        "data: 1,240 rows, 30 dropped: longer than 512 tokens; 1,200 prompts to train on, of 100 "
        "tokens on average, 10 held out; 1,210 with a reference answer, for math_rule"
    )


def test_the_summary_survives_its_file() -> None:
    assert PromptSummary.from_json(SUMMARY.to_json()) == SUMMARY


def test_prompts_are_slices_of_one_array() -> None:
    lists = TokenLists(np.arange(6, dtype=np.int32), np.asarray([0, 2, 3, 6]))
    assert [lists[prompt].tolist() for prompt in range(len(lists))] == [[0, 1], [2], [3, 4, 5]]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder of prepared data"):
        PromptData.open(tmp_path)
