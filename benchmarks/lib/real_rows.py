"""Rows of real data sets as rows of the benchmarks: their lengths, and what they have in common.

The benchmarks' tokenizer has a token for each of its own words, so each word of a real text becomes
one of them, always the same one. A word or a mark is a token, which is about what BPE makes of
English.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from benchmarks.lib.workload import SPECIAL, VOCAB_SIZE

_TURN = "\n\nAssistant:"


def token_ids(text: str) -> list[int]:
    """Give each word and mark a token of the benchmarks."""
    first = len(SPECIAL)
    return [
        first + crc32(word.encode()) % (VOCAB_SIZE - first)
        for word in re.findall(r"\w+|[^\w\s]", text)
    ]


def read_pairs(file: Path) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Read dialogues of the HH data set: the prompt, the chosen answer, the rejected one.

    Rows whose answers belong to different prompts, or say the same, are left out.
    """
    with file.open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            (prompt, chosen), (other, rejected) = (
                map(token_ids, row[name].rsplit(_TURN, 1)) for name in ("chosen", "rejected")
            )
            if prompt == other and chosen and rejected and chosen != rejected:
                yield prompt, chosen, rejected


def read_questions(file: Path) -> Iterator[list[int]]:
    """Read questions of GSM8K."""
    with file.open(encoding="utf-8") as rows:
        for row in rows:
            yield token_ids(json.loads(row)["question"])
