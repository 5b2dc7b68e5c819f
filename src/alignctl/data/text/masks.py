r"""Text to tokens with their mask, and the length rule.

A document is tokenised in one go, so that its tokens are those of any text. But the tokens of each
prompt in it have to be the ones that the model sees when only the prompt is there. Where what
follows changes them (its "12" and an answer's "34" make "1234", or a prompt of the user's own ends
with a space), the document is parted there: the tokens of the prompt alone, then those of what
follows it. Such documents are counted.

A token that straddles the end of a turn into the next prompt (".\n\n") is not learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alignctl.config.data import Truncation
from alignctl.data.rows.schemas import Rendered
from alignctl.data.tokenizer import Reading, Tokenizer


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of a document, and which of them are learned.

    Attributes:
        tokens: Token ids `[N]`.
        supervised: True = learned `[N]`.
        is_parted: Whether text that follows a prompt would have changed the prompt's tokens.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    is_parted: bool = False

    @property
    def has_target(self) -> bool:
        """True if a token after the first is learned; nothing precedes the first."""
        return bool(self.supervised[1:].any())


def encode(documents: Sequence[Rendered], tokenizer: Tokenizer) -> list[Encoded]:
    """Tokenise documents, the texts of all in one batch.

    Each gets exactly one BOS when the tokenizer adds BOS, also when a chat template wrote one
    already; a learned EOS at the end when no template wrote one; and loses the tokens after the
    last learned one, which nothing is learned from. The tokens before a learned turn are those of
    `encode_prompts` for the text before it.
    """
    return [
        _finish(document, encoded, tokenizer)
        for document, encoded in zip(documents, _read(documents, tokenizer), strict=True)
    ]


def _finish(document: Rendered, encoded: Encoded, tokenizer: Tokenizer) -> Encoded:
    tokens, supervised = encoded.tokens, encoded.supervised
    if not supervised.any() and not (document.spans and document.append_eos):
        return Encoded(tokens[:0], supervised[:0])
    needs_eos = document.append_eos and (not len(tokens) or tokens[-1] != tokenizer.eos_id)
    ends = [tokenizer.eos_id] if needs_eos else []
    tokens, supervised = _put_one_bos(tokens, supervised, tokenizer, ends)
    keep = len(tokens) if needs_eos else int(np.flatnonzero(supervised)[-1]) + 1
    return Encoded(tokens[:keep], supervised[:keep], encoded.is_parted)


def encode_prompts(documents: Sequence[Rendered], tokenizer: Tokenizer) -> list[NDArray[np.int32]]:
    """Tokenise what stands before the last turn of each document, as inference sees it.

    Args:
        documents: Each has a turn at its end that stands for the answer to come.
        tokenizer: Its tokenizer.

    Returns:
        Token ids of each prompt `[P]`, with one BOS where the tokenizer adds it.
    """
    prompts = [document.before_last_turn() for document in documents]
    return [
        _put_one_bos(encoded.tokens, encoded.supervised, tokenizer)[0]
        for encoded in _read(prompts, tokenizer)
    ]


def _read(documents: Sequence[Rendered], tokenizer: Tokenizer) -> list[Encoded]:
    """Tokenise texts as they are, without BOS and EOS of ours, and mask them."""
    encodings = tokenizer.encode_batch([document.text for document in documents])
    return [
        _read_part(document, 0, len(document.text), Reading(encoding), tokenizer)
        for document, encoding in zip(documents, encodings, strict=True)
    ]


def _read_part(
    document: Rendered, start: int, end: int, reading: Reading, tokenizer: Tokenizer
) -> Encoded:
    """Tokenise and mask the characters `[start, end)`, parted where the module says."""
    cut = _first_changed(document, start, end, reading, tokenizer)
    if cut is None:
        return Encoded(reading.ids, _mask(document, start, end, reading))
    parts = [
        _read_part(document, first, last, _read_text(document, first, last, tokenizer), tokenizer)
        for first, last in ((start, cut), (cut, end))
    ]
    return Encoded(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.supervised for part in parts]),
        is_parted=True,
    )


def _read_text(document: Rendered, start: int, end: int, tokenizer: Tokenizer) -> Reading:
    text = document.text[start:end]
    return tokenizer.continue_text(text) if start else Reading(tokenizer.encode_batch([text])[0])


def _first_changed(
    document: Rendered, start: int, end: int, reading: Reading, tokenizer: Tokenizer
) -> int | None:
    """Find the first end of a prompt in `(start, end)` at which later text changes its tokens.

    That is so inside a token. It can also be so after white space, which some tokenizers part in
    another way before a word than at the end of a text.
    """
    for prompt_end in document.prompt_ends:
        if not start < prompt_end < end:
            continue
        # A normaliser may join a mark to the letter before it: then its own character is gone.
        token = reading.token_at(prompt_end - start)
        if token is None or reading.start(token) < prompt_end - start:
            return prompt_end
        if document.text[max(start, prompt_end - 2) : prompt_end].isspace():
            space = len(document.text[start:prompt_end].rstrip())
            first = _first_token(reading, space, end - start)
            tail = document.text[start + reading.start(first) : prompt_end]
            if reading.ids[first:token].tolist() != _ids(tokenizer, tail):
                return prompt_end
    return None


@lru_cache(maxsize=1024)
def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise the end of a prompt; most prompts have one of a few."""
    ids: list[int] = tokenizer.continue_text(text).ids.tolist()
    return ids


def _mask(document: Rendered, start: int, end: int, reading: Reading) -> NDArray[np.bool_]:
    """Mark the tokens of the characters `[start, end)` that are learned."""
    supervised = np.zeros(len(reading), np.bool_)
    for first, last in document.spans:
        if first < end and last > start:
            tokens = [
                _first_token(reading, min(max(edge, start), end) - start, end - start)
                for edge in (first, last)
            ]
            supervised[slice(*tokens)] = True
    return supervised


def cut_prompt(tokens: NDArray[np.int32], window: int, bos_id: int | None) -> NDArray[np.int32]:
    """Keep the last tokens of a prompt, at most `window`, after its BOS if it has one."""
    if len(tokens) <= window:
        return tokens
    head = int(tokens[0] == bos_id)
    return np.concatenate([tokens[:head], tokens[len(tokens) - window + head :]])


def _first_token(reading: Reading, character: int, length: int) -> int:
    """Find the token of a character, or of the next one when a normaliser removed it; else N."""
    for place in range(character, length):
        token = reading.token_at(place)
        if token is not None:
            return token
    return len(reading)


def _put_one_bos(
    tokens: NDArray[np.int32],
    supervised: NDArray[np.bool_],
    tokenizer: Tokenizer,
    ends: Sequence[int] = (),
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Put one BOS first, where the tokenizer adds it, and learned `ends` last."""
    bos_id = tokenizer.bos_id if tokenizer.adds_bos else None
    if bos_id is None and not ends:
        return tokens, supervised
    leading, head = 0, int(bos_id is not None)
    while head and leading < len(tokens) and tokens[leading] == bos_id:
        leading += 1
    last = head + len(tokens) - leading
    whole = np.empty(last + len(ends), np.int32)
    mask = np.ones(len(whole), np.bool_)
    whole[:head] = bos_id if bos_id is not None else 0
    whole[head:last], whole[last:] = tokens[leading:], ends
    mask[:head], mask[head:last] = False, supervised[leading:]
    return whole, mask


def truncate(document: Encoded, window: int, rule: Truncation, bos_id: int | None) -> Encoded:
    """Cut a document that is longer than its window.

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
    """Compute where `keep_response` begins to keep tokens of a document that has `total`."""
    response = total - response_start
    context = room - response if response < room else max(room // 4, 1)
    return max(response_start - context, head)


def share_prompt(answers: Sequence[Encoded]) -> tuple[list[Encoded], int]:
    """Make the documents of one prompt learn from the same token on.

    That is where their tokens part, or the first token that belongs to an answer, whichever comes
    first: in one document a token may straddle the end of the prompt, while the others have two
    tokens there. Only then are the probabilities of all answers conditional on the same tokens.

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
        replace(answer, supervised=np.arange(len(answer.tokens)) >= prompt) for answer in answers
    ], prompt


def truncate_answers(
    answers: Sequence[Encoded], prompt: int, window: int, rule: Truncation, bos_id: int | None
) -> list[Encoded]:
    """Cut the documents of one prompt so that all keep the same part of it.

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
    """Keep the first `head` tokens, then `[start, end)` without an unlearned tail."""
    learned = np.flatnonzero(document.supervised[start:end])
    end = start + int(learned[-1]) + 1 if len(learned) else start
    return replace(
        document,
        tokens=np.concatenate([document.tokens[:head], document.tokens[start:end]]),
        supervised=np.concatenate([document.supervised[:head], document.supervised[start:end]]),
    )
