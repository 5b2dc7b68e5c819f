"""What a family says of itself: its weights, and its configs and names in other formats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alignctl.config.sections import Model
from alignctl.models.weight_map import VOCABULARY, Weight

OUTPUT = Weight("output_layer.weight", ("lm_head.weight",), VOCABULARY, "head")
"""The output layer of every family; where it is tied to the embedding, it is not a weight."""


@dataclass(frozen=True)
class Legacy:
    """What Megatron-LM calls things in its checkpoints by rank, and arguments of its.

    Attributes:
        norms: Names of norms, by their last part in ours.
        tokenizer_type: The argument.
        has_extra_states: Whether an entry follows each linear layer, for 8-bit floats.
    """

    norms: Mapping[str, str]
    tokenizer_type: str
    has_extra_states: bool


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of architectures; `config.families` says what its models are alike in.

    Attributes:
        weights: Its weights below the output layer, in model order.
        hf_model_type: Of its configs.
        hf_prefix: Of the names below a head.
        hf_ignored: Suffixes of buffers that old checkpoints carry and that are recomputed.
        from_hf: Reads a parsed `config.json`; given `where`, its name for messages, and
            `vocab_divisor`. It raises UserError where the config asks for something else.
        to_hf: Builds the config of a model that has none of its own.
        legacy: Of Megatron-LM's checkpoints by rank; None where it has no such models.
        judges: Keys of a config that `hf_config` leaves to `from_hf`.
        is_own: Whether a parsed config is of this family, where an older one has the same type.
    """

    weights: tuple[Weight, ...]
    hf_model_type: str
    hf_prefix: str
    hf_ignored: tuple[str, ...]
    from_hf: Callable[..., Model]
    to_hf: Callable[[Model], dict[str, Any]]
    legacy: Legacy | None
    judges: tuple[str, ...] = ()
    is_own: Callable[[Mapping[str, Any]], bool] | None = None

    def hf_module(self, ours: str) -> str:
        """Return the name below `hf_prefix` of the module that is `ours` in Megatron."""
        row = next(row for row in self.weights if row.megatron == f"{ours}.weight")
        return row.hf[0].removeprefix(self.hf_prefix).rpartition(".")[0]
