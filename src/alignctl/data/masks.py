r"""Text to tokens with their mask: one tokenisation of the whole document, and the length rule.

A token belongs to the turn that its last character lies in. So a token that straddles the end of
the prompt (" Sure" after "Assistant: ") is learned, because a model that never learned it could not
begin its answer; one that straddles the end of a turn into the next prompt (".\n\n") is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignctl.data.schemas import Rendered
from alignctl.data.tokenizer import Tokenizer

Truncation = Literal["keep_response", "left", "right", "drop"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens `[N]` and which of them are learned `[N]`, True = learned."""

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]

    @property
    def has_target(self) -> bool:
        """Whether a token after the first is learned; nothing precedes the first."""
        return bool(self.supervised[1:].any())


def encode(documents: Sequence[Rendered], tokenizer: Tokenizer) -> list[Encoded]:
    """Tokenises documents in one batch.

    Each gets exactly one BOS when the tokenizer adds BOS, also when a chat template wrote one
    already; a learned EOS at the end when no template wrote one; and loses the tokens after the
    last learned one, which nothing is learned from.
    """
    encodings = tokenizer.encode_batch([document.text for document in documents])
    return [
        _encode_one(document, encoding, tokenizer)
        for document, encoding in zip(documents, encodings, strict=True)
    ]


def _encode_one(document: Rendered, encoding: Any, tokenizer: Tokenizer) -> Encoded:
    tokens = np.asarray(encoding.ids, np.int32)
    supervised = np.zeros(len(tokens), np.bool_)
    length = len(document.text)
    for start, end in document.spans:
        first = _first_token(encoding, start, length, len(tokens))
        supervised[first : _first_token(encoding, end, length, len(tokens))] = True
    if not supervised.any() and not (document.spans and document.append_eos):
        return Encoded(tokens[:0], supervised[:0])
    if document.append_eos and (not len(tokens) or tokens[-1] != tokenizer.eos_id):
        tokens = np.append(tokens, np.int32(tokenizer.eos_id))
        supervised = np.append(supervised, np.True_)
    tokens, supervised = _with_one_bos(tokens, supervised, tokenizer)
    keep = int(np.flatnonzero(supervised)[-1]) + 1
    return Encoded(tokens[:keep], supervised[:keep])


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer) -> list[NDArray[np.int32]]:
    """Tokenises prompts in one batch, each by itself and with one BOS as `encode` gives it."""
    nothing_learned = np.zeros(0, np.bool_)
    return [
        _with_one_bos(np.asarray(encoding.ids, np.int32), nothing_learned, tokenizer)[0]
        for encoding in tokenizer.encode_batch(texts)
    ]


def cut_prompt(tokens: NDArray[np.int32], window: int, bos_id: int | None) -> NDArray[np.int32]:
    """The last tokens of a prompt, at most `window`, after its BOS if it has one."""
    if len(tokens) <= window:
        return tokens
    head = int(tokens[0] == bos_id)
    return np.concatenate([tokens[:head], tokens[len(tokens) - window + head :]])


def _first_token(encoding: Any, position: int, length: int, default: int) -> int:
    """Number of the first token whose last character is at or after a character position.

    That is the token of this very character, because tokens lie in the order of the text; a
    character that a normaliser removed has none, so the next one counts.
    """
    for character in range(position, length):
        token: int | None = encoding.char_to_token(character)
        if token is not None:
            return token
    return default


def _with_one_bos(
    tokens: NDArray[np.int32], supervised: NDArray[np.bool_], tokenizer: Tokenizer
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    if not tokenizer.adds_bos or tokenizer.bos_id is None:
        return tokens, supervised
    leading = 0
    while leading < len(tokens) and tokens[leading] == tokenizer.bos_id:
        leading += 1
    head = np.asarray([tokenizer.bos_id], np.int32)
    return (
        np.concatenate([head, tokens[leading:]]),
        np.concatenate([np.zeros(1, np.bool_), supervised[leading:]]),
    )


def truncate(document: Encoded, window: int, rule: Truncation, bos_id: int | None) -> Encoded:
    """Cuts a document that is longer than its window.

    The rules, which all keep a leading BOS where the start is cut:

    - `keep_response`: the context loses its start, so that the last response stays whole with at
      least one token before it. A response too long for that loses its end (with EOS): it gets
      three quarters of the window, and the end of its context the rest.
    - `left`: the last tokens of the document stay.
    - `right`: the first tokens of the document stay.
    - `drop`: nothing stays.

    Args:
        document: What `encode` returned: its last token is learned.
        window: Most tokens of a document: seq_length + 1.
        rule: Which part goes.
        bos_id: The tokenizer's BOS, or None.

    Returns:
        The document itself when it fits. What is left may have no target.
    """
    total = len(document.tokens)
    if total <= window:
        return document
    if rule == "drop":
        return _slice(document, 0, 0, 0)
    if rule == "right":
        return _slice(document, 0, 0, window)
    head = int(document.tokens[0] == bos_id)
    room = window - head
    if rule == "left":
        return _slice(document, head, total - room, total)
    unlearned = np.flatnonzero(~document.supervised)
    response_start = int(unlearned[-1]) + 1 if len(unlearned) else 0
    start = _context_start(response_start, total, room, head)
    return _slice(document, head, start, start + room)


def _context_start(response_start: int, total: int, room: int, head: int) -> int:
    """Where `keep_response` begins to keep tokens of a document that has `total`."""
    response = total - response_start
    context = room - response if response < room else max(room // 4, 1)
    return max(response_start - context, head)


def share_prompt(answers: Sequence[Encoded]) -> tuple[list[Encoded], int]:
    """Makes the documents of one prompt learn from the same token on.

    That is where their tokens part, or the first token that belongs to an answer, whichever comes
    first: in one document a token may straddle the end of the prompt, while the others have two
    tokens there. Only so are the probabilities of all answers given the same tokens.

    Args:
        answers: The documents, in each of which only the answer is learned.

    Returns:
        The documents, and the number of tokens before the answers.
    """
    shortest = min(len(answer.tokens) for answer in answers)
    first = answers[0].tokens[:shortest]
    differs = np.any([answer.tokens[:shortest] != first for answer in answers], axis=0)
    starts = [int(np.argmax(answer.supervised)) for answer in answers]
    prompt = min(*starts, int(np.argmax(differs)) if differs.any() else shortest)
    return [
        Encoded(answer.tokens, np.arange(len(answer.tokens)) >= prompt) for answer in answers
    ], prompt


def truncate_answers(
    answers: Sequence[Encoded], prompt: int, window: int, rule: Truncation, bos_id: int | None
) -> list[Encoded]:
    """Cuts the documents of one prompt so that all keep the same part of it.

    The rules of `truncate`, applied to the longest document:

    - `keep_response`: the prompt loses its start, so that the longest answer stays whole with at
      least one token before it. Answers too long for that lose their ends (with EOS): the end of
      the prompt gets a quarter of the window.
    - `left`: the prompt loses its start; nothing stays when the prompt is too short for that.
    - `right`: documents lose their ends; nothing stays when one loses its whole answer.
    - `drop`: nothing stays.

    Args:
        answers: What `share_prompt` returned.
        prompt: Tokens before the answers.
        window: Most tokens of a document.
        rule: Which part goes.
        bos_id: The tokenizer's BOS, or None.

    Returns:
        The documents themselves when all fit; as many, each with a target, or none at all.
    """
    longest = max(len(answer.tokens) for answer in answers)
    if longest <= window:
        return list(answers)
    head = int(answers[0].tokens[0] == bos_id)
    room = window - head
    start = {
        "keep_response": _context_start(prompt, longest, room, head),
        "left": longest - room,
        "right": head,
        "drop": longest,
    }[rule]
    if start > prompt:
        return []
    cut = [_slice(answer, head, start, start + room) for answer in answers]
    return cut if all(answer.has_target for answer in cut) else []


def _slice(document: Encoded, head: int, start: int, end: int) -> Encoded:
    """The first `head` tokens, then `[start, end)` without an unlearned tail."""
    learned = np.flatnonzero(document.supervised[start:end])
    end = start + int(learned[-1]) + 1 if len(learned) else start
    return Encoded(
        np.concatenate([document.tokens[:head], document.tokens[start:end]]),
        np.concatenate([document.supervised[:head], document.supervised[start:end]]),
    )
