"""The commands below `alignctl presets`."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl import console
from alignctl.errors import UserError
from alignctl.flags import OverridesArgument, PresetArgument, RowsStage, example

app = typer.Typer(
    name="presets",
    help="List, show, copy and check presets, one per model.",
    epilog=example("alignctl presets list"),
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@app.command("list", epilog=example("alignctl presets list"))
def list_presets() -> None:
    """List the presets that come with alignctl."""
    from alignctl.config import presets

    names = presets.names()
    for name in names:
        console.emit(f"{name:<{max(map(len, names))}}  {presets.title(name)}")


@app.command(
    "show",
    epilog=example(
        "alignctl presets show llama2-7b optimizer.lr=1e-5 parallel.tp=8",
        "alignctl presets show llama2-7b --stage sft --data data/sft --tokenizer models/llama2-7b",
    ),
)
def show_preset(
    preset: PresetArgument,
    overrides: OverridesArgument = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
    stage: Annotated[
        RowsStage | None, typer.Option(metavar="STAGE", help="The stage that reads --data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Rows, to say how far the stage goes with them."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The model's tokenizer, for --data.")
    ] = None,
) -> None:
    """Print a preset with every default and override filled in, and say how far its stages go."""
    from alignctl.config.load import render_preset, resolve_all, section_of
    from alignctl.stages import course

    given = [each for each in (stage, data, tokenizer) if each is not None]
    if len(given) not in (0, 3):
        raise UserError(
            f"{len(given)} of --stage, --data and --tokenizer given: they are all needed to say "
            "how far a stage goes with rows"
        )
    configs = resolve_all(preset, overrides or [])
    if stage is not None and section_of(stage) not in configs:
        raise UserError(f"{preset} has no section {section_of(stage)!r}")
    console.emit(render_preset(preset, overrides or [], as_json=json))
    for each in configs.values():
        console.say(f"{each.stage}: {course.planned(each)}")
    if stage is None:
        console.say(
            "these over the rows of your data are the passes: --stage, --data and --tokenizer say "
            "them, and the tokens that a step learns from"
        )
    else:
        from alignctl.stages import check

        config = configs[section_of(stage)]
        rows = config.data.model_copy(update={"train": data})
        config = config.model_copy(update={"data": rows, "tokenizer": tokenizer})
        for line in check.report(config, samples=0):
            console.say(str(line))


@app.command("copy", epilog=example("alignctl presets copy llama2-7b my-model.yaml"))
def copy_preset(
    preset: PresetArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
) -> None:
    """Copy a preset, comments and all, to a file of your own."""
    from alignctl.config import presets

    presets.copy(preset, file)
    console.say(f"wrote {file}; use it with --preset {file}")


@app.command("validate", epilog=example("alignctl presets validate my-model.yaml other.yaml"))
def validate_presets(
    files: Annotated[list[str], typer.Argument(metavar="NAME|FILE...", help="Presets to check.")],
) -> None:
    """Check presets as a run would, and report every problem."""
    from alignctl.config.load import load_preset

    code = 0
    for file in files:
        try:
            load_preset(file)
        except UserError as error:
            code = console.report(error)
        else:
            console.emit(f"{file}: ok")
    raise typer.Exit(code)


@app.command("schema", epilog=example("alignctl presets schema > preset.schema.json"))
def print_schema() -> None:
    """Print the JSON schema of a preset file, for editors.

    Editors with the YAML language server complete and check a preset whose first line is
    `# yaml-language-server: $schema=preset.schema.json`.
    """
    from alignctl.config.schema import preset_schema

    console.emit(preset_schema())


@app.command("knobs", epilog=example("alignctl presets knobs > docs/knobs.md"))
def print_knobs() -> None:
    """Print every knob of every stage, its values, default and meaning, as a Markdown page."""
    from alignctl.config.knobs import render_knobs

    console.emit(render_knobs().rstrip())
