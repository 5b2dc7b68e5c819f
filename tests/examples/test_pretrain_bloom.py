"""The way from raw text to a pretrained Bloom, as a user would walk it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import raw_text

SCRIPT = Path(raw_text.__file__).with_name("pretrain_bloom.sh")


def test_the_text_is_always_the_same_and_has_something_to_clean() -> None:
    texts = list(raw_text.documents())
    assert texts == list(raw_text.documents())
    assert len(texts) == raw_text.NUM_DOCUMENTS > len(set(texts))
    assert any("https://" in text for text in texts)
    assert any(raw_text.BEGINNING in text for text in texts)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "exists already; give another folder" in done.stderr


@pytest.mark.slow  # a minute
@pytest.mark.timeout(900)
def test_the_chain_ends_with_a_lower_perplexity(tmp_path: Path) -> None:
    """From some 500, the size of the vocabulary, to a few: the text is made by a small grammar."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPT, "chain"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *_, before, after, perplexity = done.stdout.strip().splitlines()
    assert before.startswith(raw_text.BEGINNING)
    assert after.startswith(raw_text.BEGINNING)
    first, last = map(float, re.findall(r"\d+\.\d+", perplexity))
    assert first > 100
    assert last < 10
