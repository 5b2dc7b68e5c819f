import random

import numpy as np
import pytest

from alignctl.corpus.cleaning.duplicates import (
    NUM_HASHES,
    band_hashes,
    near_repeats,
    repeats,
    rows_per_band,
    signatures,
    text_hashes,
)

WORDS = [f"word{i}" for i in range(400)]


def near(texts: list[str], threshold: float = 0.8) -> list[bool]:
    signed = signatures(texts)
    bands = band_hashes(signed, rows_per_band(threshold))
    result: list[bool] = near_repeats(
        iter(bands), signed.__getitem__, threshold, np.zeros(len(texts), bool)
    ).tolist()
    return result


def changed(words: list[str], count: int) -> str:
    """The text with some words changed, so that 5 runs differ per word."""
    result = list(words)
    for place in range(count):
        result[(place * 37 + 10) % len(result)] = f"other{place}"
    return " ".join(result)


def test_the_same_text_is_a_repeat_of_the_first() -> None:
    assert repeats(text_hashes(["a", "b", "a", "c", "b", "a"])).tolist() == [
        False, False, True, False, True, True,
    ]  # fmt: skip


def test_a_text_with_few_changes_is_nearly_the_same() -> None:
    """Four changed words touch 20 of 396 runs of five: similarity 376 / 416 = 0.90."""
    assert near([" ".join(WORDS), changed(WORDS, 4)]) == [False, True]


def test_a_text_with_many_changes_is_another_one() -> None:
    """Twenty-five changed words touch 125 of 396 runs: similarity 271 / 521 = 0.52."""
    assert near([" ".join(WORDS), changed(WORDS, 25)]) == [False, False]


def test_other_order_of_letters_case_and_punctuation_is_the_same() -> None:
    assert near(["The whale, the sea!", "the WHALE the sea"]) == [False, True]


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "".join(chr(0x4E00 + 7 * i) for i in range(300))
    assert near([text, text[:150] + "\u9fff" + text[151:]]) == [False, True]


def test_what_is_left_out_already_leads_nobody() -> None:
    texts = [" ".join(WORDS)] * 2
    signed = signatures(texts)
    bands = band_hashes(signed, 4)
    first_out = np.asarray([True, False])
    assert near_repeats(iter(bands), signed.__getitem__, 0.8, first_out).tolist() == [False, False]


def test_many_documents_are_found_with_few_mistakes() -> None:
    """Of 200 pairs of similarity 0.90, found with a probability of 1 - (1 - 0.9^4)^32 each."""
    generator = random.Random(3)
    texts = []
    for _ in range(200):
        words = [str(generator.randrange(10**6)) for _ in range(200)]
        texts += [" ".join(words), changed(words, 2)]
    found = near(texts)
    assert sum(found[1::2]) >= 198
    assert not any(found[::2])


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_what_is_as_similar_as_the_threshold(threshold: float) -> None:
    rows = rows_per_band(threshold)
    assert NUM_HASHES % rows == 0
    assert 1 - (1 - threshold**rows) ** (NUM_HASHES / rows) >= 0.99
