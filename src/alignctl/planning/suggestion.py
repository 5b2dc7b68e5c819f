"""A preset for a model that has none: its architecture, its family's recipe, layouts that fit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Model
from alignctl.planning.devices import Device
from alignctl.planning.layouts import Plan, fitting

OTHERS = "recipes/tulu3"
"""The recipe of families that have none of their own."""

_SAMPLERS = (1, 2, 4, 8)
"""Sizes of `rollout.tp`."""

_PASSES = {"sft": 2, "reward": 1, "dpo": 1}
"""Over the rows, which are not those that a recipe counts its steps of."""

_LAID_OUT = ("tp", "pp", "sequence_parallel", "distributed_optimizer", "recompute")


@dataclass(frozen=True)
class Machine:
    """What a preset is for.

    Attributes:
        gpus: How many there are; where there are none, processes.
        name: Of the GPUs, such as h100; None: there are none.
        device: What a GPU can do.
        memory_gib: What each has.
    """

    gpus: int
    name: str | None = None
    device: Device | None = None
    memory_gib: float = 0.0

    def __str__(self) -> str:
        """Describe it for a reader."""
        if self.name is None:
            return f"{self.gpus} {'process' if self.gpus == 1 else 'processes'}, without a GPU"
        return f"{self.gpus} x {self.name} with {self.memory_gib:g} GiB"


def suggest(model: Model, machine: Machine, source: str) -> tuple[str, list[str]]:
    """Write a preset of every stage that fits.

    Args:
        model: The architecture.
        machine: Where it is to be trained.
        source: Where the architecture was read, for the header.

    Returns:
        YAML; and the sections of stages that do not fit, which its header names too.
    """
    base = {"extends": recipe(model.family), "model": model.model_dump(mode="json")}
    sections = {section: _told(config, model) for section, config in _asked(model).items()}
    if machine.device is None:
        tree, missing = {**base, "layout": _without_gpus(machine), **sections}, []
    else:
        plans = {
            section: _fastest(config, machine)
            for section, config in _configs({**base, **sections}).items()
        }
        tree = {**base, **_laid_out(plans, sections)}
        missing = [section for section, plan in plans.items() if plan is None]
    head = [
        f"# {model.traits.title}, as {source} has it, on {machine}.",
        "#",
        f"# What is learned, and how, is as {base['extends']} says"
        f"{'' if machine.device is None else '; layouts are the fastest that fit'}.",
        *(f"# {stage}: no layout fits, see `alignctl plan`." for stage in missing),
    ]
    parts = [yaml.safe_dump({key: tree[key]}, sort_keys=False, width=96) for key in tree]
    return "\n".join(["\n".join(head), "", *parts]), missing


def recipe(family: str) -> str:
    """Return the recipe of a family."""
    own = f"recipes/{family}"
    return own if own in presets.recipes() else OTHERS


def _configs(tree: Mapping[str, Any]) -> dict[str, TrainingConfig]:
    """Resolve every stage of a preset."""
    text = yaml.safe_dump(dict(tree))
    flags = {"output": Path("runs")}
    return {
        section: resolve(config_class, "suggested.yaml", flags, text=text)
        for section, config_class in STAGES.items()
    }


def _asked(model: Model) -> dict[str, TrainingConfig]:
    """Resolve what the recipe asks for, whether or not the model has as many positions."""
    longer = model.model_copy(update={"max_position_embeddings": 10**6})
    base = {"extends": recipe(model.family), "model": longer.model_dump(mode="json")}
    return _configs({**base, **{section: {"batch": {"micro_batch_size": 1}} for section in STAGES}})


def _told(config: TrainingConfig, model: Model) -> dict[str, Any]:
    """Make the section of a stage, where the recipe has something else than this model needs."""
    section: dict[str, Any] = {"batch": {"micro_batch_size": 1}}
    most = model.max_position_embeddings
    if model.traits.is_rotary and config.batch.seq_length > most:
        section["batch"]["seq_length"] = most
        if is_on_policy(config):
            section["data"] = {"max_prompt_length": most // 2}
            section["rollout"] = {"max_new_tokens": most - most // 2}
    if config.stage in _PASSES:
        section["train"] = {"steps": None, "epochs": _PASSES[config.stage]}
    return section


def _without_gpus(machine: Machine) -> dict[str, Any]:
    """Let each process have the whole model, in fp32: a CPU computes bf16 slower."""
    parallel = {"tp": 1, "pp": 1, "sequence_parallel": False}
    return {
        "precision": "fp32",
        "parallel": {**parallel, "distributed_optimizer": machine.gpus > 1},
        "launch": {"nproc_per_node": machine.gpus, "nnodes": 1},
        "rollout": {"tp": 1},
    }


def _laid_out(
    plans: Mapping[str, Plan | None], sections: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write what most stages have in common as the layout, and for each what it has for itself."""
    chosen = {section: plan.config for section, plan in plans.items() if plan is not None}
    found: dict[str, Any] = dict.fromkeys(plans)
    if not chosen:
        return found
    parallel = {
        key: Counter(getattr(each.parallel, key) for each in chosen.values()).most_common(1)[0][0]
        for key in _LAID_OUT
    }
    launch = next(iter(chosen.values())).launch
    nodes = {"nproc_per_node": launch.nproc_per_node, "nnodes": launch.nnodes}
    found |= {
        section: _own(config, sections[section], parallel) for section, config in chosen.items()
    }
    return {"layout": {"parallel": parallel, "launch": nodes}, **found}


def _own(
    config: TrainingConfig, section: dict[str, Any], parallel: Mapping[str, Any]
) -> dict[str, Any]:
    """Add to a stage's section its micro batch, and where it is laid out as others are not."""
    own = {key: getattr(config.parallel, key) for key in parallel}
    differs = {key: value for key, value in own.items() if value != parallel[key]}
    batch = {**section.get("batch", {}), "micro_batch_size": config.batch.micro_batch_size}
    found = {**section, **({"parallel": differs} if differs else {}), "batch": batch}
    if is_on_policy(config):
        found["rollout"] = {**section.get("rollout", {}), "tp": config.rollout.tp}
        found["offload"] = config.offload
    return found


def _fastest(config: TrainingConfig, machine: Machine) -> Plan | None:
    """Find the fastest layout; of what samples, with as few devices for the sampler as will do."""
    assert machine.device is not None
    for tp in _SAMPLERS if is_on_policy(config) else (None,):
        if tp is not None:
            if machine.gpus % tp:
                break
            rollout = config.rollout.model_copy(update={"tp": tp})  # type: ignore[attr-defined]
            config = config.model_copy(update={"rollout": rollout})
        plans = fitting(
            config, machine.device, gpus=machine.gpus, gpu_memory_gib=machine.memory_gib
        )
        if plans:
            return plans[0]
    return None
