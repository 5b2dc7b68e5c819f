"""The command of a stage that trains: its flags follow from what the stage is."""

import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from alignctl import console
from alignctl.cli.flags import (
    DryRunFlag,
    GpuMemoryFlag,
    MasterAddrFlag,
    MasterPortFlag,
    MaxRestartsFlag,
    NnodesFlag,
    NodeRankFlag,
    NoResumeFlag,
    NprocFlag,
    OutputFlag,
    OverridesArgument,
    SimulateFlag,
    SuitingPresetFlag,
    example,
    say_found,
)
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST
from alignctl.config.inputs import (
    Input,
    find_inputs,
    missing_inputs,
    paths_of,
    refuse_inside,
    require_inputs,
)
from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.places import place, stem
from alignctl.config.presets.library import is_ours
from alignctl.config.presets.load import knob_names, resolve
from alignctl.config.presets.problems import refuse
from alignctl.config.rewards import file_problems
from alignctl.config.run import TrainingConfig
from alignctl.config.stages import section_of
from alignctl.errors import UserError
from alignctl.launch.nodes import NodeFlags, nnodes_in, nodes_from
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.stage import Stage


@dataclass(frozen=True)
class Request:
    """What a command line asks of a stage.

    Attributes:
        stage: The stage.
        preset: Name or path of the preset; None: what suits the model.
        flags: Dotted key to value; None where there is no flag.
        overrides: `section.key=value`.
        nodes: The flags that say which nodes there are.
        dry_run: Only show what would run.
        resume: Whether a run that was started before may be continued.
        simulated_gpu_gib: Only simulate it, on GPUs of so much memory; None: really start it.
    """

    stage: Stage[Any]
    preset: str | None
    flags: dict[str, Any]
    overrides: list[str]
    nodes: NodeFlags
    dry_run: bool
    resume: bool
    simulated_gpu_gib: float | None

    def resolve(self, nnodes: int | None) -> TrainingConfig:
        """Resolve the configuration, with what is found by convention where a flag is left out.

        Args:
            nnodes: Nodes, where no flag gives their number.
        """
        nnodes = self.nodes.nnodes or nnodes
        preset, text = (self.preset, None) if self.preset else self._suggested(nnodes)
        output = self.flags["output"] or place("runs", f"{stem(preset)}-{self.name}")
        flags = {**self.flags, "output": output, "launch.nnodes": nnodes}
        config: TrainingConfig = resolve(
            self.stage.config, preset, flags, self.overrides, text=text
        )
        if self.simulated_gpu_gib is None and (found := find_inputs(self.stage.inputs, config)):
            say_found({each.flag: path for each, path in found.items()})
            flags |= {each.key: path for each, path in found.items()}
            config = resolve(self.stage.config, preset, flags, self.overrides, text=text)
        refuse_inside("--output", config.output, paths_of(self.stage.inputs, config))
        return config

    def _suggested(self, nnodes: int | None) -> tuple[str, str | None]:
        """Return the preset that suits the model: that of its run, or else one made for it.

        Returns:
            Its name, and what it holds if it is no file.

        Raises:
            UserError: There is no model to suit.
        """
        load = self.flags["load"]
        if load is None:
            raise UserError(
                "--preset is missing: neither it nor --load says which model it is to be",
                "alignctl presets list has the names; with --load alone, layout and recipe are "
                "chosen for that model",
            )
        from alignctl.stages.shared import suggestion  # arrays and formats: not for a typo

        recorded = suggestion.recorded_preset(load)
        if recorded is not None and (is_ours(recorded) or Path(recorded).is_file()):
            console.say(f"--preset {recorded}, as of the run {load}")
            return recorded, None
        processes = self.flags["launch.nproc_per_node"]
        machine = suggestion.this_machine(
            processes and processes * (nnodes or 1),
            are_gpus=self.simulated_gpu_gib is not None,
        )
        name, text = suggestion.name_for(load), suggestion.suggest_for(load, machine, self.name)
        console.say(f"no --preset: this one is made for {load}\n\n{text}")
        console.say(f"to keep and to change it: alignctl presets suggest --load {load} > {name}")
        return name, text

    @property
    def name(self) -> str:
        """Subcommand."""
        return self.stage.name


def make_app(stage: Stage[Any], act: Callable[[Request], None] | None = None) -> typer.Typer:
    """Make the command of a stage.

    Args:
        stage: The stage.
        act: What is done with the command line once it is read; by default it is started.
    """

    def train(
        preset: SuitingPresetFlag = None,
        output: OutputFlag = None,
        nproc: NprocFlag = None,
        nnodes: NnodesFlag = None,
        node_rank: NodeRankFlag = None,
        master_addr: MasterAddrFlag = None,
        master_port: MasterPortFlag = None,
        max_restarts: MaxRestartsFlag = None,
        dry_run: DryRunFlag = False,
        simulate: SimulateFlag = False,
        gpu_memory: GpuMemoryFlag = None,
        no_resume: NoResumeFlag = False,
        overrides: OverridesArgument = None,
        **inputs: Any,
    ) -> None:
        named = {each.key: inputs[_parameter(each)] for each in stage.inputs if each.help}
        flags = {
            **named,
            "output": output,
            "launch.nproc_per_node": nproc,
            "launch.max_restarts": max_restarts,
        }
        request = Request(
            stage,
            preset,
            flags,
            overrides or [],
            NodeFlags(nnodes, node_rank, master_addr, master_port),
            dry_run,
            not no_resume,
            _simulated_gpu(simulate, gpu_memory),
        )
        (act or start)(request)

    train.__signature__ = _with_inputs(train, stage.inputs)  # type: ignore[attr-defined]
    app = typer.Typer(**PLAIN)
    epilog = f"{example(*stage.examples)}\n\n{_knobs(stage.name)}"
    app.command(stage.name, help=stage.help, epilog=epilog)(train)
    return app


def _knobs(stage: str) -> str:
    """Write the stage's knobs for the end of its help; the mark keeps the line breaks."""
    sections: dict[str, list[str]] = {}
    for name in knob_names(section_of(stage)):
        section, _, key = name.rpartition(".")
        sections.setdefault(section, []).append(key)
    lines = [
        line
        for section, keys in sections.items()
        for line in textwrap.wrap(
            f"{section + ': ' if section else ''}{', '.join(keys)}", 76, subsequent_indent="    "
        )
    ]
    shown = "\n".join(f"  {line}" for line in lines)
    return (
        f"\b\nKnobs (alignctl presets show NAME {stage} has their values, docs/knobs.md explains):"
        f"\n{shown}"
    )


def _with_inputs(command: Callable[..., None], inputs: tuple[Input, ...]) -> inspect.Signature:
    """Put a parameter for each input's flag behind the preset, in the place of `**inputs`."""
    signature = inspect.signature(command)
    preset, *others, _ = signature.parameters.values()
    return signature.replace(parameters=[preset, *_parameters(inputs), *others])


def _parameters(inputs: tuple[Input, ...]) -> Iterator[inspect.Parameter]:
    for each in inputs:
        if not each.help:
            continue
        if each.metavar == "N":
            option = typer.Option(*each.flags, min=0, max=MOST, metavar="N", help=each.help)
            annotation: Any = Annotated[int | None, option]
        else:
            option = typer.Option(*each.flags, metavar=each.metavar, help=each.help)
            annotation = Annotated[Path | None, option]
        yield inspect.Parameter(
            _parameter(each),
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=annotation,
        )


def _parameter(each: Input) -> str:
    return each.flag.lstrip("-").replace("-", "_")


def _simulated_gpu(simulate: bool, gpu_memory: float | None) -> float | None:
    """Return the GiB of a GPU for --simulate; None without it.

    Raises:
        UserError: --gpu-memory is given without it.
    """
    if gpu_memory is not None and not simulate:
        raise UserError(f"--gpu-memory {gpu_memory:g} has no effect without --simulate")
    return (gpu_memory or 80.0) if simulate else None


def start(request: Request) -> None:
    """Start a stage as its command line says, and leave with its exit code."""
    stage, dry_run = request.stage, request.dry_run
    config = request.resolve(nnodes_in(os.environ))
    if request.simulated_gpu_gib is not None and not dry_run:
        from alignctl.stages.shared import simulation

        gpu_memory = request.simulated_gpu_gib
        raise typer.Exit(simulation.launch(config, gpu_memory_gib=gpu_memory))
    functions = config.score.functions if is_on_policy(config) else []
    if dry_run:
        console.note_all([*missing_inputs(stage.inputs, config), *file_problems(functions)])
    else:
        is_started = RunFolder(config.output).origin.is_dir()
        require_inputs(stage.inputs, config, is_started=is_started)
        if problems := file_problems(functions):
            raise refuse(problems)
    place = nodes_from(
        request.nodes,
        os.environ,
        configured=config.launch.nnodes,
        nproc=config.launch.nproc_per_node,
        is_dry_run=dry_run,
    )
    from alignctl.sources import hub
    from alignctl.stages.shared import launcher  # arrays and files of checkpoints: not for a typo

    if not dry_run:
        config = hub.fetch_inputs(config, stage.inputs)
    code = launcher.launch(stage, config, nodes=place, dry_run=dry_run, resume=request.resume)
    raise typer.Exit(code)
