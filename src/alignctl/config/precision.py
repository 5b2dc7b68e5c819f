"""The types that models compute in, and what float16 needs beside them."""

from typing import Annotated, Literal

from pydantic import Field

from alignctl.config.numbers import Count
from alignctl.config.sections import Section

Precision = Literal["fp32", "bf16", "fp16"]
"""Of weights and activations."""


def bytes_of_number(precision: Precision) -> int:
    """Return the bytes of a weight or an activation."""
    return 4 if precision == "fp32" else 2


class LossScale(Section):
    """What losses are multiplied by in float16, so that small gradients do not become zero.

    It follows the gradients, as Megatron's does: a step with one that is not finite is left out;
    the gradients of others are divided by it again.
    """

    initial: Annotated[float, Field(gt=0, le=2.0**100)] = 2.0**32
    """At the start: more than fits, so that the first steps find the largest that does."""

    minimum: Annotated[float, Field(gt=0, le=2.0**100)] = 1.0
    """It does not become smaller than this: gradients that are not finite then end the run."""

    growth_interval: Count = 1000
    """Steps in a row with finite gradients after which it doubles."""

    hysteresis: Count = 2
    """Steps with gradients that are not finite from which on each halves it; counted anew whenever
    it doubles."""

    def problems(self, precision: Precision) -> list[str]:
        """List settings that have no effect or exclude each other, one line each."""
        if precision != "fp16":
            return [
                f"loss_scale.{name} {getattr(self, name):g} has no effect with precision "
                f"{precision}: only float16 needs a loss scale; leave it out, or set precision=fp16"
                for name in self.model_fields_set
                if getattr(self, name) != getattr(LossScale(), name)
            ]
        if self.minimum > self.initial:
            return [
                f"loss_scale.minimum {self.minimum:g} exceeds loss_scale.initial {self.initial:g}"
            ]
        return []
