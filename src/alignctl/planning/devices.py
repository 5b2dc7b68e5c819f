"""GPUs and what they can do, from devices.yaml."""

from functools import cache
from importlib import resources
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter

from alignctl.config.sections import Section
from alignctl.errors import UserError

Rate = Annotated[float, Field(gt=0, le=1e9, strict=False)]


class Device(Section):
    """A GPU; devices.yaml says what is meant by each number."""

    memory_gib: Rate
    tflops: dict[str, Rate]
    hbm_gbs: Rate
    link_gbs: Rate
    network_gbs: Rate
    source: str
    names: Annotated[tuple[str, ...], Field(strict=False)] = ()


@cache
def devices() -> dict[str, Device]:
    """Read all GPUs that are known, by name."""
    text = resources.files("alignctl.planning").joinpath("devices.yaml").read_text("utf-8")
    return TypeAdapter(dict[str, Device]).validate_python(yaml.safe_load(text))


def device_called(name: str) -> Device | None:
    """Find a GPU by what its driver calls it, such as NVIDIA H100 80GB HBM3; None: not known."""
    words = name.replace("-", " ").split()
    for known in devices().values():
        if any(all(word in words for word in each.split()) for each in known.names):
            return known
    return None


def device(name: str) -> Device:
    """Find a GPU by its name.

    Raises:
        UserError: It is not known.
    """
    known = devices()
    if name not in known:
        raise UserError(f"--gpu {name}: unknown; known are {', '.join(known)}")
    return known[name]
