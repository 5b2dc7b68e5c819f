"""The commands: each reads its flags, resolves them into one value and hands that to a stage.

Whatever takes time to import is imported inside a command, so that `--help` and a misspelt key are
answered at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from alignctl import __version__, cli_convert, cli_presets, console
from alignctl.errors import AlignctlError
from alignctl.flags import (
    DryRunFlag,
    OverridesArgument,
    PresetFlag,
    TokenizerFlag,
    example,
)


def main() -> None:
    """Run the command line and exit: 2 for what the user got wrong, 1 for what went wrong here."""
    # Pydantic would look for plugins in the metadata of every installed distribution.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        code = app(standalone_mode=False)
    except AlignctlError as error:
        code = console.report(error)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "alignctl"
        code = console.explain(error.format_message(), f"{command} --help", error.exit_code)
    except typer.Abort:
        code = 130
    except Exception as error:
        code = console.report_bug(error)
    sys.exit(code)


app = typer.Typer(
    name="alignctl",
    help="Convert, fine-tune and align language models with Megatron-Core.",
    epilog=example(
        "alignctl convert-hf2mg --preset llama2-7b --load models/llama2-7b --save models/mg",
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        "alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/llama2-7b-sft",
    ),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_presets.app)
cli_convert.register(app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.emit(f"alignctl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@app.command(
    "sft",
    epilog=example(
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        "alignctl sft --preset llama2-70b --load models/mg --data data/sft \\",
        "  --nnodes 4 --node-rank 0 --master-addr node0 --dry-run",
    ),
)
def sft(
    preset: PresetFlag,
    load: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Model to start from: Hugging Face, Megatron or a run."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Training rows: a file or a folder.")
    ] = None,
    validation_data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Validation rows: a file or a folder.")
    ] = None,
    tokenizer: TokenizerFlag = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/PRESET-sft.")
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes per node; default: the preset's."),
    ] = None,
    nnodes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Nodes; default: the environment's, the preset's."),
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
        bool, typer.Option("--no-resume", help="Refuse a run folder that was already started.")
    ] = False,
    overrides: OverridesArgument = None,
) -> None:
    """Fine-tune a model on conversations.

    Only what the assistant says is learned.
    """
    from alignctl.config.inputs import require_inputs
    from alignctl.config.load import resolve
    from alignctl.config.run import SFTConfig
    from alignctl.launch.nodes import NodeFlags, nnodes_in, nodes_from

    flags = {
        "load": load,
        "data.train": data,
        "data.validation": validation_data,
        "tokenizer": tokenizer,
        "output": output or Path("runs") / f"{Path(preset).stem}-sft",
        "launch.nproc_per_node": nproc,
        "launch.nnodes": nnodes or nnodes_in(os.environ),
    }
    config = resolve(SFTConfig, preset, flags, overrides or [])
    if not dry_run:
        require_inputs(config)
    nodes = nodes_from(
        NodeFlags(nnodes, node_rank, master_addr, master_port),
        os.environ,
        configured=config.launch.nnodes,
        is_dry_run=dry_run,
    )
    from alignctl.stages import sft as stage

    raise typer.Exit(stage.launch(config, nodes=nodes, dry_run=dry_run, resume=not no_resume))


@app.command("doctor", epilog=example("alignctl doctor"))
def doctor() -> None:
    """Say what this machine lacks, and what mends it."""
    from alignctl.doctor import examine

    text, is_usable = examine()
    console.emit(text)
    raise typer.Exit(0 if is_usable else 1)
