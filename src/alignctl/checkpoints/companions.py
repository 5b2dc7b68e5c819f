"""The files beside a model's weights (config, tokenizer ...), which travel with it unchanged."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from alignctl.errors import UserError

_NOT_COMPANIONS = re.compile(
    r".*\.(safetensors|bin|pt|pth|h5|msgpack|onnx|gguf)(\.index\.json)?|\..*", re.IGNORECASE
)
"""Weights of any kind, and hidden files."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that is missing or holds something else is the user's error."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object was expected, found {type(content).__name__}")
    return content


def copy_companions(source: Path, target: Path) -> None:
    """Copies the files beside the weights; neither the weights nor folders."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not _NOT_COMPANIONS.fullmatch(file.name):
            shutil.copyfile(file, target / file.name)
