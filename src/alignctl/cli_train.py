"""The commands that train one model on data: they take the same flags."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from alignctl import console
from alignctl.errors import UserError
from alignctl.flags import (
    DataFlag,
    DryRunFlag,
    GpuMemoryFlag,
    LoadFlag,
    MasterAddrFlag,
    MasterPortFlag,
    MaxRestartsFlag,
    NnodesFlag,
    NodeRankFlag,
    NoResumeFlag,
    NprocFlag,
    OutputFlag,
    OverridesArgument,
    PresetFlag,
    SimulateFlag,
    TokenizerFlag,
    ValidationDataFlag,
    example,
)
from alignctl.launch.nodes import NodeFlags

_SIMULATED = "alignctl {stage} --preset llama2-70b --simulate"
_NODES = (
    "alignctl {stage} --preset llama2-70b --load {load} --data data/{data} \\",
    "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    _add(
        app,
        "pretrain",
        """Go on pretraining a model on indexed datasets.

        Every token is learned. alignctl prepare tokenize makes the datasets, and Megatron's own
        are read as they are.
        """,
        "alignctl pretrain --preset bloom-7b --load models/mg --data data/wudao_text_document",
        "alignctl pretrain --preset bloom-7b --load models/mg \\",
        "  'data.blend={data/zh: 0.7, data/en: 0.3}' train.tokens=1000000000",
        *(line.format(stage="pretrain", load="models/mg", data="shards") for line in _NODES),
    )
    _add(
        app,
        "sft",
        """Fine-tune a model on conversations.

        Only what the assistant says is learned.
        """,
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        *(line.format(stage="sft", load="models/mg", data="sft") for line in _NODES),
        _SIMULATED.format(stage="sft"),
    )
    _add(
        app,
        "reward",
        """Train a reward model on preferences.

        Answers to one prompt are compared in pairs; better ones get higher scores.
        """,
        "alignctl reward --preset llama2-7b --load runs/llama2-7b-sft --data data/pairs",
        *(line.format(stage="reward", load="runs/sft", data="pairs") for line in _NODES),
        _SIMULATED.format(stage="reward"),
    )
    _add(
        app,
        "dpo",
        """Align a policy with preferences, without a reward model.

        The reference is the model it starts from.
        """,
        "alignctl dpo --preset llama2-7b --load runs/llama2-7b-sft --data data/pairs loss.beta=0.1",
        *(line.format(stage="dpo", load="runs/sft", data="pairs") for line in _NODES),
        _SIMULATED.format(stage="dpo"),
    )


def _add(app: typer.Typer, stage: str, text: str, *examples: str) -> None:
    """Adds the command of a stage.

    Args:
        app: The command line.
        stage: Its name, also that of its module and of its section in a preset.
        text: What it says of itself.
        examples: Command lines.
    """

    @app.command(stage, help=text, epilog=example(*examples))
    def train(
        context: typer.Context,
        preset: PresetFlag,
        load: LoadFlag = None,
        data: DataFlag = None,
        validation_data: ValidationDataFlag = None,
        tokenizer: TokenizerFlag = None,
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
    ) -> None:
        flags = {
            "load": load,
            "data.train": data,
            "data.validation": validation_data,
            "tokenizer": tokenizer,
            "output": output,
            "launch.nproc_per_node": nproc,
            "launch.max_restarts": max_restarts,
        }
        nodes = NodeFlags(nnodes, node_rank, master_addr, master_port)
        start(
            stage,
            preset,
            flags,
            overrides,
            nodes,
            context,
            dry_run=dry_run,
            resume=not no_resume,
            simulated_gpu_gib=simulated_gpu(simulate, gpu_memory),
        )


def simulated_gpu(simulate: bool, gpu_memory: float | None) -> float | None:
    """The GiB of a GPU for --simulate; None without it.

    Raises:
        UserError: --gpu-memory is given without it.
    """
    if gpu_memory is not None and not simulate:
        raise UserError(f"--gpu-memory {gpu_memory:g} has no effect without --simulate")
    return (gpu_memory or 80.0) if simulate else None


def start(
    stage: str,
    preset: str,
    flags: Mapping[str, Any],
    overrides: list[str] | None,
    nodes: NodeFlags,
    context: typer.Context,
    *,
    dry_run: bool,
    resume: bool,
    simulated_gpu_gib: float | None = None,
) -> None:
    """Starts a stage as its command was told to, and leaves with its exit code.

    Args:
        stage: The command.
        preset: Name or path of the preset.
        flags: Dotted key to value; None where there is no flag.
        overrides: `section.key=value`.
        nodes: The flags that say which nodes there are.
        context: Its `obj`, if it has one, takes the configuration and nothing is started: see
            `alignctl launch`.
        dry_run: Only show what would run.
        resume: Whether a run that was started before may be continued.
        simulated_gpu_gib: Only simulate it, on GPUs of so much memory; None: really start it.
    """
    from alignctl.config.inputs import missing_inputs, paths_of, refuse_inside, require_inputs
    from alignctl.config.load import STAGES, resolve, section_of
    from alignctl.launch.nodes import nnodes_in, nodes_from
    from alignctl.launch.run_folder import RunFolder

    flags = {
        **flags,
        "output": flags["output"] or Path("runs") / f"{Path(preset).stem}-{stage}",
        "launch.nnodes": nodes.nnodes or (None if context.obj else nnodes_in(os.environ)),
    }
    config = resolve(STAGES[section_of(stage)], preset, flags, overrides or [])
    refuse_inside("--output", config.output, paths_of(config))
    if context.obj is not None:
        if nodes != NodeFlags(nodes.nnodes) or dry_run or simulated_gpu_gib is not None:
            raise UserError(
                "alignctl launch: nodes find out by themselves who they are and where node 0 is",
                "leave out --node-rank, --master-addr, --master-port, --dry-run and --simulate",
            )
        context.obj(config)
        return
    if simulated_gpu_gib is not None and not dry_run:
        simulation = import_module("alignctl.stages.simulation")
        raise typer.Exit(simulation.launch(config, gpu_memory_gib=simulated_gpu_gib))
    if dry_run:
        console.note_all(missing_inputs(config))
    else:
        require_inputs(config, is_started=RunFolder(config.output).origin.is_dir())
    place = nodes_from(
        nodes,
        os.environ,
        configured=config.launch.nnodes,
        nproc=config.launch.nproc_per_node,
        is_dry_run=dry_run,
    )
    program = import_module(f"alignctl.stages.{section_of(stage)}")
    raise typer.Exit(program.launch(config, nodes=place, dry_run=dry_run, resume=resume))
