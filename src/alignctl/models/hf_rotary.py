"""Rotary positions in a transformers config: their base, and how they are stretched."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.families import Traits
from alignctl.config.sections import Model, RopeScaling
from alignctl.errors import UserError
from alignctl.models.hf_config import shown


def read(config: Mapping[str, Any], where: str, traits: Traits) -> tuple[float, RopeScaling | None]:
    """Read the rotary positions, from whichever keys transformers takes them.

    What is not empty under `rope_scaling` takes the place of all of `rope_parameters`; where the
    base is not in there, it is the config's own `rope_theta` (`convert_rope_params_to_dict`).

    Raises:
        UserError: Positions are scaled in a way that the family does not have, or two keys
            contradict each other.
        KeyError: A number is missing.
    """
    meant: dict[str, tuple[Any, RopeScaling | None]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        told = config.get(key)
        if told is not None and not isinstance(told, Mapping):
            raise UserError(
                f"{where}: {key} = {shown(told)} is no mapping",
                "write null where positions are not scaled",
            )
        if told:
            base = told.get("rope_theta", config.get("rope_theta", 10000.0))
            meant[key] = base, _scaling(key, told, where, traits)
    values = list(meant.values()) or [(config.get("rope_theta", 10000.0), None)]
    for base, _ in values:
        if isinstance(base, bool) or not isinstance(base, int | float) or base <= 0:
            raise UserError(f"{where}: rope_theta = {shown(base)} is no base of rotary positions")
    if any(value != values[0] for value in values):
        bases = [str(base) for base, _ in values]
        which = f": rope_theta {' and '.join(bases)}" if len({*bases}) > 1 else ""
        raise UserError(
            f"{where}: rope_scaling and rope_parameters contradict each other{which}",
            "transformers takes rope_scaling; remove the one that is wrong",
        )
    return float(values[0][0]), values[0][1]


def kind_of(told: Mapping[str, Any]) -> Any:
    """Return the kind of scaling that a mapping tells of, under either of its names."""
    return told.get("rope_type", told.get("type", "default"))


def _scaling(key: str, told: Mapping[str, Any], where: str, traits: Traits) -> RopeScaling | None:
    kinds = ("default", "llama3") if traits.may_scale_positions else ("default",)
    if kind_of(told) not in kinds or any(isinstance(value, Mapping) for value in told.values()):
        raise UserError(
            f"{where}: {key} = {shown(told)} is not part of the {traits.title} family",
            "alignctl trains models with plain rotary positions, and Llama 3 with its own scaling "
            "(rope_type llama3)",
        )
    if told.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{where}: {key} = {shown(told)} turns only a part of each head")
    if kind_of(told) == "default":
        return None
    return RopeScaling(
        factor=float(told["factor"]),
        low_freq_factor=float(told["low_freq_factor"]),
        high_freq_factor=float(told["high_freq_factor"]),
        original_max_position_embeddings=told["original_max_position_embeddings"],
    )


def write(model: Model) -> dict[str, Any]:
    """Build `rope_parameters` of a transformers config."""
    scaling = model.rope_scaling.model_dump() if model.rope_scaling else {}
    kind = "llama3" if model.rope_scaling else "default"
    return {"rope_type": kind, "rope_theta": model.rotary_base, **scaling}
