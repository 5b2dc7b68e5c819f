"""What the files beside a model say of its answers: where they end, and what is not heeded.

As transformers reads them: generation_config.json, and config.json where there is none. Answers end
at the tokenizer's EOS too, which is what alignctl trains.
"""

from pathlib import Path
from typing import Any

from alignctl import user_files
from alignctl.checkpoints.auxiliary_files import read_json
from alignctl.errors import UserError

_KEY = "eos_token_id"

_NEUTRAL: dict[str, object] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "dola_layers": None,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": 0,
    "repetition_penalty": 1,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "watermarking_config": None,
}
"""What moves transformers' greedy answers beside the length, and the value with which it does not;
null and empty ones never do."""

_SHOWN = 60
"""Characters of a value in a message."""


def end_token_ids(folder: Path | None, eos_id: int, *, vocab_size: int) -> tuple[int, ...]:
    """Read which tokens end an answer.

    Args:
        folder: The files beside the weights; None where there are none.
        eos_id: The tokenizer's EOS.
        vocab_size: Tokens of the model.

    Returns:
        EOS first, then the others of `eos_token_id` in their order.

    Raises:
        UserError: A file is not readable, or holds what is no token of the model.
    """
    named = [eos_id]
    for file in _files(folder):
        value = read_json(file).get(_KEY)
        if value is not None:
            named += [
                _check_token(token, file, vocab_size)
                for token in (value if isinstance(value, list) else [value])
            ]
            break
    return tuple(dict.fromkeys(named))


def unheeded(folder: Path | None, *, repetition_penalty: float) -> str | None:
    """Name the settings that make transformers' greedy answers differ from alignctl's.

    Args:
        folder: The files beside the weights; None where there are none.
        repetition_penalty: The knob of that name, which decides here.

    Returns:
        A sentence, or None where the files ask for nothing of the kind.
    """
    files = _files(folder)
    if not files:
        return None
    content = read_json(files[0])
    neutral = _NEUTRAL | {"repetition_penalty": repetition_penalty}
    found = [
        f"{key} {_shorten(content[key])}"
        for key, value in neutral.items()
        if content.get(key) not in (None, value, [], {}, "")
    ]
    if not found:
        return None
    told = f"{files[0]}: not heeded: {', '.join(found)}; transformers would answer otherwise"
    if "repetition_penalty" in content and content["repetition_penalty"] != repetition_penalty:
        told += "; there is a knob repetition_penalty"
    return told


def _files(folder: Path | None) -> list[Path]:
    """List the config files that are there; the first one that says something counts."""
    if folder is None:
        return []
    files = [folder / name for name in ("generation_config.json", "config.json")]
    return [file for file in files if user_files.is_there(file)]


def _check_token(token: Any, file: Path, vocab_size: int) -> int:
    if type(token) is int and 0 <= token < vocab_size:
        return token
    raise UserError(
        f"{file}: {_KEY} has {_shorten(token)}, which is no token of this model: they are "
        f"numbers from 0 to {vocab_size - 1}",
        "list the ids of the tokens that end an answer, or remove the key: the tokenizer's EOS "
        "ends one in any case",
    )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
