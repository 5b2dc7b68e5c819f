"""A model on disk, as values: what was found, and the parts of one with adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignctl.checkpoints.manifest import Manifest
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Lora, Model, Role
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES, config_of_head

Kind = Literal["hf", "zero", "mcore", "legacy"]


@dataclass(frozen=True)
class Adapters:
    """The parts of a model that is a base with adapters.

    Attributes:
        lora: Their settings.
        base: The model they were made for.
        tensors: Full A and B by our Megatron names.
    """

    lora: Lora
    base: "Source"
    tensors: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Source:
    """A model on disk.

    Attributes:
        kind: Hugging Face, DeepSpeed's training state of such a model, Megatron-Core's distributed
            format, or Megatron's files by rank.
        path: The folder with the weights themselves.
        model: Its architecture, as its own files tell it.
        head: What is on top of its layers.
        auxiliary: Folder with config.json and tokenizer files; None where there are none.
        manifest: What we wrote down about it; None for what others wrote.
        hf_prefix: Of its Hugging Face names below the head.
        tensors: Full tensors by our Megatron names, without vocabulary padding; of a checkpoint
            with adapters they are merged ones.
        description: One line that says what was found.
        adapted: Of a checkpoint with adapters, what it is made of.
        unchecked: What nothing in the files tells, so that nobody can check it; None: all is told.
    """

    kind: Kind
    path: Path
    model: Model
    head: Head
    auxiliary: Path | None
    manifest: Manifest | None
    hf_prefix: str
    tensors: Mapping[str, LazyTensor]
    description: str
    adapted: Adapters | None = None
    unchecked: str | None = None

    @property
    def role(self) -> Role:
        """Purpose of the model: a policy, or a reward model."""
        return "policy" if self.head == "lm" else "reward"

    @property
    def hf_config(self) -> dict[str, Any]:
        """Transformers config for a model that has none beside it."""
        config = FAMILIES[self.model.family].to_hf(self.model)
        return config | config_of_head(self.model, self.head, config)

    def tokenizer_folder(self, chosen: Path | None) -> Path:
        """Find the tokenizer: in the folder that was chosen, or else beside the model.

        Raises:
            UserError: None was chosen, and the model has none.
        """
        folder = chosen or self.auxiliary
        if folder is None:
            raise UserError(
                f"{self.path}: there are no tokenizer files beside this checkpoint",
                "give the folder of its tokenizer: --tokenizer DIR",
            )
        return folder


def require_reward(source: Source, name: str) -> None:
    """Refuse a policy where scores are wanted.

    Args:
        source: What was found.
        name: What the message calls it: a flag, or its path.

    Raises:
        UserError: It is no reward model.
    """
    if source.role != "reward":
        raise UserError(
            f"{name}: this is a policy, and a reward model is needed",
            "train one: alignctl reward --load ...",
        )
