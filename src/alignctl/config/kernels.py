"""Which kernels a model is computed with: the same numbers but for rounding, faster or not."""

from typing import Literal

from alignctl.config.sections import Model, Section

Attention = Literal["plain", "flex", "transformer_engine"]
"""What computes attention."""

Activation = Literal["plain", "fused"]
"""What computes the activation of the feed-forward blocks."""

_NARROWEST_HEAD = 16
"""Numbers in a head that FlexAttention's kernels need on a GPU."""


class Kernels(Section):
    """What computes the layers of a model; acts only with engine megatron."""

    attention: Literal["auto"] | Attention = "auto"
    """plain: torch's scaled_dot_product_attention, once per document. flex: torch's FlexAttention,
    one kernel for all documents of a micro batch and what they share; on a GPU, without dropout.
    transformer_engine: that library's, on a GPU, without ALiBi. auto: without a GPU plain, else
    transformer_engine where it is installed and knows the model, else flex where it does."""

    activation: Literal["auto"] | Activation = "auto"
    """What becomes of a feed-forward block's first product, with its bias or its gate. plain: an
    operator of torch's after the other. fused: one function of Megatron's, one kernel on a GPU,
    which keeps its input alone for the backward pass. auto: fused on a GPU, else plain."""

    def choose_activation(self, *, is_gpu: bool) -> Activation:
        """Choose what computes activations, on a GPU or without one."""
        if self.activation != "auto":
            return self.activation
        return "fused" if is_gpu else "plain"

    def choose(self, model: Model, *, is_gpu: bool, has_transformer_engine: bool) -> Attention:
        """Choose what computes a model's attention.

        Args:
            model: The model.
            is_gpu: Whether it is computed on a GPU.
            has_transformer_engine: Whether that is installed there.
        """
        if self.attention != "auto":
            return self.attention
        if not is_gpu:
            return "plain"
        if has_transformer_engine and model.traits.is_rotary:
            return "transformer_engine"
        return "plain" if _flex_problems(model) else "flex"

    def problems(self, model: Model, engine: str) -> list[str]:
        """List settings that have no effect, or that the model excludes, one line each."""
        if engine != "megatron":
            return [
                f"kernels.{name} {getattr(self, name)} has no effect with engine {engine}, which "
                "trains transformers' layers; leave it out"
                for name in sorted(self.model_fields_set)
                if getattr(self, name) != getattr(Kernels(), name)
            ]
        if self.attention == "transformer_engine" and not model.traits.is_rotary:
            return [
                "kernels.attention transformer_engine: it knows no ALiBi, which "
                f"{model.family} needs"
            ]
        return _flex_problems(model) if self.attention == "flex" else []


def _flex_problems(model: Model) -> list[str]:
    """List the reasons why FlexAttention cannot compute a model, one line each."""
    problems = []
    if model.attention_dropout:
        problems.append(
            f"kernels.attention flex: it drops no attention weights, and model.attention_dropout "
            f"is {model.attention_dropout}; take plain"
        )
    if model.head_width < _NARROWEST_HEAD:
        problems.append(
            f"kernels.attention flex: the model's heads are {model.head_width} wide, and it needs "
            f"{_NARROWEST_HEAD} or more; take plain"
        )
    return problems
