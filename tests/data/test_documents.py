"""Streaming rows into arrays: counts, and where each document came from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignctl.config.data import Truncation
from alignctl.data.documents import DocumentWriter, Recipe, Tally, stream
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer

WriteRows = Callable[..., Path]

ROWS = [
    {"prompt": "abc", "response": "de"},
    {"prompt": "abc", "response": " "},
    {"prompt": "abcdef", "response": "gh"},
    {"prompt": "abcdef", "response": "ghijkl"},
]


def run(
    folder: Path, file: Path, tokenizer: Tokenizer, window: int, truncation: Truncation
) -> tuple[Tally, list[int]]:
    done: list[int] = []
    recipe = Recipe(Renderer("auto", tokenizer), tokenizer, truncation, window)
    with DocumentWriter(folder, [file]) as writer:
        tally = stream([file], recipe, writer, done.append)
    return tally, done


@pytest.mark.parametrize(
    ("truncation", "lengths", "counts"),
    [
        # Windows of 6 tokens. Row 1: 3 + 2 + EOS fits. Row 2: blank. Row 3: 6 + 2 + EOS is cut.
        # Row 4: 6 + 6 + EOS: its answer does not fit, so it gets 5 tokens, without EOS.
        ("keep_response", [5, 5, 5], (2, 1, 0, 1)),
        ("left", [5, 5, 5], (2, 1, 0, 0)),
        ("right", [5], (0, 3, 0, 0)),
        ("drop", [5], (0, 1, 2, 0)),
    ],
)
def test_rows_are_counted_by_what_became_of_them(
    tmp_path: Path,
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    truncation: Truncation,
    lengths: list[int],
    counts: tuple[int, int, int, int],
) -> None:
    tally, done = run(tmp_path, write_rows(ROWS), make_tokenizer(), 6, truncation)
    assert np.concatenate(tally.lengths).tolist() == lengths
    assert counts == (tally.truncated, tally.no_target, tally.too_long, tally.without_eos)
    assert (tally.rows, tally.documents, done) == (4, len(lengths), [4])


def test_arrays_say_which_line_a_document_came_from(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    tally, _ = run(tmp_path, write_rows(ROWS), make_tokenizer(), 20, "keep_response")
    assert np.load(tmp_path / "lines.npy").tolist() == [1, 3, 4]
    assert np.load(tmp_path / "file_numbers.npy").tolist() == [0, 0, 0]
    assert len(np.load(tmp_path / "tokens.npy")) == sum(np.concatenate(tally.lengths) + 1)
    assert np.concatenate(tally.targets).tolist() == [3, 3, 7]


def test_progress_moves_while_rows_stream(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([{"prompt": "a", "response": "b"}] * 1100)
    assert run(tmp_path, file, make_tokenizer(), 9, "drop")[1] == [512, 512, 76]


def test_a_row_of_another_schema_is_named(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([ROWS[0], {"query": "a", "response": "b"}])
    with pytest.raises(UserError, match=r"train\.jsonl:2: no key 'prompt'"):
        run(tmp_path, file, make_tokenizer(), 9, "drop")
