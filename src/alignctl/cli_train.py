"""The commands that train one model on rows: they take the same flags."""

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from alignctl.flags import (
    DryRunFlag,
    OverridesArgument,
    PresetFlag,
    TokenizerFlag,
    example,
)

_NODES = (
    "alignctl {stage} --preset llama2-70b --load {load} --data data/{data} \\",
    "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
)


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    _add(
        app,
        "sft",
        """Fine-tune a model on conversations.

        Only what the assistant says is learned.
        """,
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        *(line.format(stage="sft", load="models/mg", data="sft") for line in _NODES),
    )
    _add(
        app,
        "reward",
        """Train a reward model on preferences.

        Answers to one prompt are compared in pairs; better ones get higher scores.
        """,
        "alignctl reward --preset llama2-7b --load runs/llama2-7b-sft --data data/pairs",
        *(line.format(stage="reward", load="runs/sft", data="pairs") for line in _NODES),
    )
    _add(
        app,
        "dpo",
        """Align a policy with preferences, without a reward model.

        The reference is the model it starts from.
        """,
        "alignctl dpo --preset llama2-7b --load runs/llama2-7b-sft --data data/pairs loss.beta=0.1",
        *(line.format(stage="dpo", load="runs/sft", data="pairs") for line in _NODES),
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
        preset: PresetFlag,
        load: Annotated[
            Path | None,
            typer.Option(
                metavar="DIR", help="Model to start from: Hugging Face, Megatron or a run."
            ),
        ] = None,
        data: Annotated[
            Path | None, typer.Option(metavar="PATH", help="Training rows: a file or a folder.")
        ] = None,
        validation_data: Annotated[
            Path | None, typer.Option(metavar="PATH", help="Validation rows: a file or a folder.")
        ] = None,
        tokenizer: TokenizerFlag = None,
        output: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help=f"Run folder; default: runs/PRESET-{stage}."),
        ] = None,
        nproc: Annotated[
            int | None,
            typer.Option(min=1, metavar="N", help="Processes per node; default: the preset's."),
        ] = None,
        nnodes: Annotated[
            int | None,
            typer.Option(
                min=1, metavar="N", help="Nodes; default: the environment's, the preset's."
            ),
        ] = None,
        node_rank: Annotated[
            int | None, typer.Option(min=0, metavar="N", help="Which node this is, from 0.")
        ] = None,
        master_addr: Annotated[
            str | None, typer.Option(metavar="HOST", help="Node 0, as the other nodes reach it.")
        ] = None,
        master_port: Annotated[
            int | None, typer.Option(metavar="N", help="Free port on node 0.")
        ] = None,
        dry_run: DryRunFlag = False,
        no_resume: Annotated[
            bool,
            typer.Option("--no-resume", help="Refuse a run folder that was already started."),
        ] = False,
        overrides: OverridesArgument = None,
    ) -> None:
        from alignctl.config.inputs import require_inputs
        from alignctl.config.load import STAGES, resolve
        from alignctl.launch.nodes import NodeFlags, nnodes_in, nodes_from

        flags = {
            "load": load,
            "data.train": data,
            "data.validation": validation_data,
            "tokenizer": tokenizer,
            "output": output or Path("runs") / f"{Path(preset).stem}-{stage}",
            "launch.nproc_per_node": nproc,
            "launch.nnodes": nnodes or nnodes_in(os.environ),
        }
        config = resolve(STAGES[stage], preset, flags, overrides or [])
        if not dry_run:
            require_inputs(config)
        nodes = nodes_from(
            NodeFlags(nnodes, node_rank, master_addr, master_port),
            os.environ,
            configured=config.launch.nnodes,
            is_dry_run=dry_run,
        )
        program = import_module(f"alignctl.stages.{stage}")
        raise typer.Exit(program.launch(config, nodes=nodes, dry_run=dry_run, resume=not no_resume))
