"""What kinds of values the well-known keys of config.json and its like have.

alignctl reads few of these keys, and copies the files as they are. A value of another kind would
show only when transformers loads the result: by a traceback, or by strange answers of the model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignctl.errors import UserError
from alignctl.user_files import read_json

_NUMBER, _SWITCH, _TEXT = (int, float), (bool,), (str,)
_IDS, _LIST, _OBJECT = (int,), (list,), (dict,)

_KINDS: Mapping[tuple[type, ...], str] = {
    _NUMBER: "initializer_range length_penalty max_length max_new_tokens min_length min_new_tokens "
    "model_max_length num_beams num_return_sequences pretraining_tp repetition_penalty temperature "
    "top_k top_p typical_p",
    _IDS: "bos_token_id eos_token_id pad_token_id",
    _SWITCH: "add_bos_token add_eos_token clean_up_tokenization_spaces do_sample legacy use_cache",
    _TEXT: "_name_or_path dtype model_type padding_side tokenizer_class torch_dtype "
    "transformers_version truncation_side",
    _LIST: "architectures",
    _OBJECT: "added_tokens_decoder id2label label2id",
}
_KIND_OF = {key: kinds for kinds, keys in _KINDS.items() for key in keys.split()}

_NAMES: Mapping[tuple[type, ...], str] = {
    _NUMBER: "a number",
    _IDS: "a whole number, or a list of them",
    _SWITCH: "true or false",
    _TEXT: "text",
    _LIST: "a list",
    _OBJECT: "an object",
}

_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")


def read_settings(file: Path) -> dict[str, Any]:
    """Read a JSON object, and check the well-known keys of the three files that have them.

    Raises:
        UserError: It cannot be read, or a well-known key is neither null nor of its kind.
    """
    content = read_json(file)
    known = _KIND_OF if file.name in _FILES else {}  # a vocabulary has any keys
    for key, kinds in known.items():
        value = content.get(key)
        values = (isinstance(value, list) and kinds is _IDS and value) or [value]
        if any(each is not None and type(each) not in kinds for each in values):
            raise UserError(
                f"{file}: {key} is {repr(value)[:60]}, where {_NAMES[kinds]} is expected",
                "correct the value, or remove the key",
            )
    return content
