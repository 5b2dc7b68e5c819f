"""The token that pads texts in a batch, of which transformers must not be able to lose a score.

Its models with a score read the last token that is not padding. Where the padding token is also the
one that ends a text, they read the token before the end, and where it is another one than the
tokenizer pads with, they read padding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignctl import user_files
from alignctl.checkpoints.auxiliary_files import read_json, write_config
from alignctl.data.tokenizer import Tokenizer, load_tokenizer


def problem(config: Mapping[str, Any]) -> str | None:
    """Explain why transformers would not score a reward model's batches as we do, or return None.

    Args:
        config: The model's config.json.
    """
    pad = config.get("pad_token_id")
    if pad is None:
        return "there is no pad_token_id, so that transformers scores one text at a time"
    if pad in _ends(config):
        return f"pad_token_id {pad} also ends texts, of which transformers scores the token before"
    if type(pad) is not int or pad < 0:
        return f"pad_token_id {pad} is no token, so that transformers scores padding"
    return None


def settle(folder: Path, vocab_size: int) -> None:
    """Make config and tokenizer of a reward model agree on a padding token that ends no text.

    What is right already stays as it is, byte for byte. Else the tokenizer's padding token is
    taken, the config's, or a special token that ends nothing.

    Args:
        folder: The model that is written, with its config and its tokenizer.
        vocab_size: Rows of the model's embedding.

    Raises:
        UserError: The tokenizer cannot be read.
    """
    config = read_json(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        pad = _first(_candidates(config), _ends(config), vocab_size)
        if pad is not None and pad != config.get("pad_token_id"):
            write_config(folder, {**config, "pad_token_id": pad})
        return
    tokenizer = load_tokenizer(folder)
    ends = _ends(config) | {tokenizer.eos_id}
    pad = _first(_tokens(config, tokenizer), ends, vocab_size)
    assert pad is not None  # a vocabulary has more tokens than those that end
    if pad != config.get("pad_token_id"):
        write_config(folder, {**config, "pad_token_id": pad})
    _write_pad(folder, tokenizer.backend.id_to_token(pad))


def _ends(config: Mapping[str, Any]) -> set[object]:
    told = config.get("eos_token_id")
    return set(told) if isinstance(told, list) else {told}


def _first(candidates: list[Any], ends: set[object], vocab_size: int) -> int | None:
    for each in candidates:
        if type(each) is int and 0 <= each < vocab_size and each not in ends:
            return each
    return None


def _candidates(config: Mapping[str, Any]) -> list[Any]:
    """List tokens that could pad where there is no tokenizer: the config's, then the first ids."""
    return [config.get("pad_token_id"), config.get("bos_token_id"), 0, 1, 2]


def _tokens(config: Mapping[str, Any], tokenizer: Tokenizer) -> list[Any]:
    """List tokens that could pad: the tokenizer's own, the config's, special ones, then all."""
    added = tokenizer.backend.get_added_tokens_decoder()
    special = sorted(number for number, token in added.items() if token.special)
    known = [number for number in special if "pad" in added[number].content.lower()]
    unknown = [
        tokenizer.backend.token_to_id(tokenizer.special_tokens[name])
        for name in ("unk_token", "bos_token")
        if name in tokenizer.special_tokens
    ]
    own = [tokenizer.pad_id]
    told = config.get("pad_token_id")
    if type(told) is int and told >= 0 and tokenizer.backend.id_to_token(told) is not None:
        own.append(told)
    return [*own, *known, *unknown, *special, *sorted(tokenizer.vocabulary.values())]


def _write_pad(folder: Path, token: str) -> None:
    """Set the padding token in a tokenizer's settings, where they say something else."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        old = read_json(folder / name) if user_files.is_there(folder / name) else {}
        told = old.get("pad_token")
        if (told.get("content") if isinstance(told, dict) else told) == token:
            continue
        if old or name == "tokenizer_config.json":
            write_config(folder, {**old, "pad_token": token}, name)
