"""Which kernels a model is computed with: the same numbers but for rounding, faster or not."""

from typing import Literal

from alignctl.config.sections import Model, Section

Attention = Literal["auto", "plain", "transformer_engine"]
"""What computes attention."""


class Kernels(Section):
    """What computes the layers of a model; acts only with engine megatron."""

    attention: Attention = "auto"
    """plain: torch's scaled_dot_product_attention, once per document. transformer_engine: that
    library's, for llama2 on a GPU. auto: transformer_engine where it is installed, else plain."""

    def problems(self, model: Model, engine: str) -> list[str]:
        """List settings that have no effect, or that the model excludes, one line each."""
        if engine != "megatron":
            return [
                f"kernels.{name} {getattr(self, name)} has no effect with engine {engine}, which "
                "trains transformers' layers; leave it out"
                for name in sorted(self.model_fields_set)
                if getattr(self, name) != getattr(Kernels(), name)
            ]
        if self.attention == "transformer_engine" and model.family == "bloom":
            return ["kernels.attention transformer_engine: it knows no ALiBi, which bloom needs"]
        return []
