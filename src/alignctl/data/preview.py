"""One document as text again, in pieces that are learned or not, to show to the user."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from alignctl.data.batch import Document
from alignctl.data.tokenizer import Tokenizer

# What a decoder gives for the bytes of a character that is not complete.
_REPLACEMENT = "\ufffd"


def pieces(document: Document, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Decode runs of tokens that share their mask.

    Every run is decoded together with all before it: bytes of one character may be spread over
    tokens, and some decoders treat the first token in a special way.

    Args:
        document: A document of the prepared data.
        tokenizer: The tokenizer it was prepared with.

    Returns:
        Pieces of text in order, each with whether the model learns to produce it. A character that
        is split between two runs goes to the later one.
    """
    return list(_pieces(document, tokenizer))


def _pieces(document: Document, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    changes = np.flatnonzero(np.diff(document.supervised)) + 1
    edges = [0, *changes.tolist(), len(document.tokens)]
    ids = document.tokens.tolist()
    shown = 0
    for start, end in pairwise(edges):
        text = tokenizer.decode(ids[:end])
        if end < len(ids):
            text = text.rstrip(_REPLACEMENT)
        if len(text) > shown:
            yield text[shown:], bool(document.supervised[start])
            shown = len(text)
