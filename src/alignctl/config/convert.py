"""What a conversion between Hugging Face and Megatron is told."""

from typing import Literal, Self

from pydantic import model_validator

from alignctl.config.sections import Count, FilePath, Model, Section


class Layout(Section):
    """The `convert` section of a preset: how a Megatron checkpoint is cut."""

    tp: Count = 1
    """Tensor-parallel ranks."""

    pp: Count = 1
    """Pipeline stages."""


class ConvertOptions(Section):
    """One conversion, in either direction."""

    load: FilePath
    """The folder to read."""

    save: FilePath
    """The folder to write."""

    tp: Count = 1
    """Tensor-parallel ranks of the Megatron checkpoint to write; a Hugging Face folder has none."""

    pp: Count = 1
    """Pipeline stages of the Megatron checkpoint to write; a Hugging Face folder has none."""

    format: Literal["mcore"] = "mcore"
    """The Megatron side: mcore is Megatron-Core's distributed checkpoint."""

    role: Literal["policy"] = "policy"
    """What the weights are: a policy is a causal language model."""

    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"
    """Type of the tensors written; keep: as they are read."""

    tokenizer: FilePath | None = None
    """Folder of the tokenizer's files to take along; null: the folder that is read."""

    model: Model | None = None
    """The architecture to insist on; null: what the folder's own config says."""

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.model and (problems := self.model.layout_problems(self.tp, self.pp, prefix="--")):
            raise ValueError("\n".join(problems))
        return self
