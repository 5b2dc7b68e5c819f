"""A preset made for a model folder that none was named for."""

from pathlib import Path

from alignctl.checkpoints.find import find
from alignctl.config import places
from alignctl.config.bounds import MOST_PROCESSES
from alignctl.config.presets.document import shown
from alignctl.config.presets.load import STAGES
from alignctl.config.stages import NAMES, section_of
from alignctl.errors import UserError
from alignctl.launch.environment import gpu_names
from alignctl.planning.devices import device, device_called, devices
from alignctl.planning.suggestion import Machine, suggest
from alignctl.run_folder import checkpoint_at

_ENDINGS = ("-mg", "-hf", *(f"-{stage}" for stage in NAMES))


def suggest_for(load: Path, machine: Machine, stage: str | None = None) -> str:
    """Write the text of a preset for the model in a folder, of any format.

    Args:
        load: The folder.
        machine: Where it is to be trained.
        stage: A stage that must fit; None: any will do.

    Raises:
        UserError: There is no such model, it is of no family of ours, or it does not fit.
    """
    model = find(load).model
    text, missing = suggest(model, machine, shown(load))
    if missing == list(STAGES) or (stage is not None and section_of(stage) in missing):
        raise UserError(
            f"no layout of {stage or 'any stage'} for {load} fits onto {machine}",
            "take more GPUs (--gpus of alignctl presets suggest), or a preset with lora.rank=16",
        )
    return text


def name_for(load: Path) -> str:
    """Name the preset of a model after its folder, as the places by convention do."""
    name = _run_of(load).resolve().name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return f"{name}.yaml"


def recorded_preset(load: Path) -> str | None:
    """Return the preset that a run was started with, None of what is no run."""
    found = places.recorded(_run_of(load), "preset")
    return found if isinstance(found, str) else None


def _run_of(load: Path) -> Path:
    """Return the run that `RUN@best` is of; other paths as they are."""
    checkpoint = checkpoint_at(load)
    return load if checkpoint == load else checkpoint.parent.parent


def named_machine(gpus: int, name: str, memory_gib: float | None = None) -> Machine:
    """Describe a machine of so many GPUs of a kind.

    Raises:
        UserError: The kind is not known.
    """
    kind = device(name)
    return Machine(gpus, name, kind, memory_gib or kind.memory_gib)


def this_machine(processes: int | None, *, are_gpus: bool) -> Machine:
    """Describe what a run started here has.

    Args:
        processes: Of the run, if that was said; None: as many as there are GPUs, or one.
        are_gpus: Whether each is to have a GPU even if there is none here: for a run that is only
            simulated. It is then as the smallest that we know.
    """
    here = gpu_names()
    count = processes or len(here) or 1
    if count > MOST_PROCESSES:
        raise UserError(f"{count} processes: at most {MOST_PROCESSES} are possible")
    if not here and not are_gpus:
        return Machine(count)
    return named_machine(count, _kind(here[0]) if here else "a100-80g")


def _kind(name: str) -> str:
    """Find the kind of a GPU by the name that its driver says, such as NVIDIA H100 80GB HBM3."""
    found = device_called(name)
    for kind, known in devices().items():
        if known is found:
            return kind
    raise UserError(
        f"{name}: a GPU that alignctl has no figures of, which a layout is computed from",
        "name the nearest: alignctl presets suggest --load DIR --gpus N --gpu NAME > FILE.yaml",
    )
