"""What all models of a family are alike in, as far as configurations and plans need to know it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Traits:
    """A family of architectures. The default: Llama 2, and what is like it.

    Attributes:
        title: As people call it.
        hf_class: What the names of transformers' classes begin with.
        normalization: RMSNorm has weights, LayerNorm biases too.
        activation: Of the feed-forward block.
        is_gated: Whether the activation's result is multiplied with a second projection.
        has_biases: Whether each linear layer has a bias.
        has_qkv_bias: Whether the projections to queries, keys and values have one.
        has_qk_norm: Whether each head of queries and keys is normalised.
        has_embedding_norm: Whether the embedding is.
        positions: rotary: angles by position, up to a longest one; alibi: a bias, without limit.
        may_scale_positions: Whether `rope_scaling` may be set.
        may_set_head_dim: Whether heads may be of another width than hidden_size / heads.
        has_hidden_dropout: Whether transformers' layers know `hidden_dropout`.
        lora_targets: Linear layers that can have adapters, under Hugging Face's names, by group.
    """

    title: str
    hf_class: str
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    is_gated: bool = True
    has_biases: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    has_embedding_norm: bool = False
    positions: Literal["rotary", "alibi"] = "rotary"
    may_scale_positions: bool = False
    may_set_head_dim: bool = False
    has_hidden_dropout: bool = False
    lora_targets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "mlp": ("gate_proj", "up_proj", "down_proj"),
        }
    )

    @property
    def is_rotary(self) -> bool:
        """True if positions are angles, which end at a longest one."""
        return self.positions == "rotary"


_BLOOM = Traits(
    "Bloom",
    "Bloom",
    normalization="LayerNorm",
    activation="gelu_tanh",
    is_gated=False,
    has_biases=True,
    has_embedding_norm=True,
    positions="alibi",
    has_hidden_dropout=True,
    lora_targets={
        "attention": ("query_key_value", "dense"),
        "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
    },
)

TRAITS: dict[str, Traits] = {
    "llama2": Traits("Llama 2", "Llama"),
    "bloom": _BLOOM,
    "llama3": Traits("Llama 3", "Llama", may_scale_positions=True),
    "mistral": Traits("Mistral", "Mistral", may_set_head_dim=True),
    "qwen2": Traits("Qwen 2", "Qwen2", has_qkv_bias=True),
    "qwen3": Traits("Qwen 3", "Qwen3", has_qk_norm=True, may_set_head_dim=True),
}
"""The families by name. Each has a module of that name in `models`."""


def families_that(trait: str) -> str:
    """Name the families that have a trait, for messages."""
    return ", ".join(name for name, traits in TRAITS.items() if getattr(traits, trait))
