"""What a conversion is told."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from alignctl.config.numbers import Processes
from alignctl.config.sections import FilePath, Model, Role, Section
from alignctl.errors import UserError

Verify = Literal["full", "fast", "none"]
"""How a written model is compared with its source: every tensor and the outputs of every layer, a
few layers, or not at all."""


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def _bytes(value: object) -> object:
    """Read a size as people write it: 5GB, 500MB, 2GiB, or a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmg]i?)?b?", value.strip().lower())
    if match is None:
        raise ValueError(f"{value!r} is no size: write 5GB, 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


Bytes = Annotated[int, Field(ge=1, le=10**18), BeforeValidator(_bytes)]
"""A size in bytes, or a text such as 5GB."""


def size_in_bytes(flag: str, text: str) -> int:
    """Read the size that a flag was given, as 500MB."""
    try:
        return TypeAdapter(Bytes).validate_python(text)
    except ValidationError as error:
        raise UserError(f"{flag} {text}: no size", "write 5GB, 500MB or 2GiB") from error


class Layout(Section):
    """The `convert` section of a preset: how a Megatron checkpoint is cut."""

    tp: Processes = 1
    """Tensor-parallel ranks."""

    pp: Processes = 1
    """Pipeline stages."""


class ConvertOptions(Section):
    """One conversion, in whatever direction."""

    load: FilePath
    """The folder to read."""

    save: FilePath
    """The folder to write."""

    tp: Processes = 1
    """Tensor-parallel ranks of the Megatron checkpoint to write; a Hugging Face folder has none."""

    pp: Processes = 1
    """Pipeline stages of the Megatron checkpoint to write; a Hugging Face folder has none."""

    format: Literal["mcore", "legacy"] = "mcore"
    """The Megatron checkpoint to write. mcore: Megatron-Core's distributed checkpoint, one for any
    layout. legacy: Megatron-LM's folders by rank, for the layout of tp and pp."""

    role: Role | None = None
    """What the weights must be: policy, a language model; reward, a model that scores; null: what
    is found."""

    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"
    """Type of the tensors written; keep: as they are read."""

    tokenizer: FilePath | None = None
    """Folder of the tokenizer's files to take along; null: the folder that is read."""

    max_shard_size: Bytes = 5 * 10**9
    """Largest weight file of a Hugging Face folder, in bytes; a single tensor may exceed it."""

    adapter_only: bool = False
    """Write the adapters of a LoRA run in PEFT's format, not the model they are merged into."""

    base: Annotated[str, Field(pattern=r"^[\w.~-]+(/[\w.~-]+)*$", max_length=200)] | None = None
    """Name of the model that all began with, such as meta-llama/Llama-2-7b-hf, for the model card
    and for PEFT; null: the path that the first run was given."""

    verify: Verify = "full"
    """How the result is compared with what was read."""

    model: Model | None = None
    """The architecture to insist on; null: what the folder's own config says."""

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.model and (problems := self.model.layout_problems(self.tp, self.pp, prefix="--")):
            raise ValueError("\n".join(problems))
        return self
