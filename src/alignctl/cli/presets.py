"""List, show, copy and check presets, one per model; a preset may extend another."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl import console
from alignctl.cli.flags import PresetArgument, example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST_PROCESSES
from alignctl.config.presets import inheritance
from alignctl.config.presets import library as presets
from alignctl.config.presets.knobs import render_knobs
from alignctl.config.presets.load import STAGES, load_preset, resolve_all
from alignctl.config.presets.problems import did_you_mean
from alignctl.config.presets.render import render_preset
from alignctl.config.presets.schema import preset_schema
from alignctl.config.stages import NAMES, section_of
from alignctl.errors import UserError
from alignctl.stages.shared.stage import load_stage

app = typer.Typer(name="presets", help=__doc__, epilog=example("alignctl presets list"), **PLAIN)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@app.command("list", epilog=example("alignctl presets list"))
def list_presets() -> None:
    """List the presets that come with alignctl; recipes are what they extend."""
    names = presets.names()
    for name in names:
        console.emit(f"{name:<{max(map(len, names))}}  {presets.title(name)}")
    console.say(f"a preset of yours may extend any of them, or {', '.join(presets.recipes())}")


@app.command(
    "show",
    epilog=example(
        "alignctl presets show llama2-7b sft",
        "alignctl presets show llama2-7b optimizer.lr=1e-5 parallel.tp=8",
        "alignctl presets show llama2-7b sft --data data/sft --tokenizer models/llama2-7b",
    ),
)
def show_preset(
    preset: PresetArgument,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE] [key=value]...",
            help="The only stage to show; knobs to change, such as optimizer.lr=1e-5.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Rows, to say how far STAGE goes with them."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The model's tokenizer, for --data.")
    ] = None,
) -> None:
    """Print a preset as one whole, and say how far its stages go.

    Every default and override is filled in, and a comment says where each value comes from. What is
    printed is a preset itself.
    """
    stage, overrides = _stage_first(words or [])
    given = [each for each in (stage, data, tokenizer) if each is not None]
    if (data or tokenizer) and len(given) != 3:
        raise UserError(
            f"{len(given)} of STAGE, --data and --tokenizer given: they are all needed to say how "
            "far a stage goes with rows"
        )
    if stage and data and load_stage(stage).rows == "datasets":
        raise UserError(f"{stage} reads no rows: name a stage that does, such as sft")
    text = render_preset(preset, overrides, stage=stage, as_json=json)
    configs = resolve_all(preset, overrides)
    console.emit(text)
    for section, config in configs.items():
        if stage in (None, section):
            console.say(f"{config.stage}: {config.describe_course()}")
    if stage is None or data is None:
        console.say(
            "these over the rows of your data are the passes: STAGE, --data and --tokenizer say "
            "them, and the tokens that a step learns from"
        )
        return
    from alignctl.stages.shared import check  # tokenizers and arrays: only where rows are read

    rows = configs[stage].data.model_copy(update={"train": data, "blend": None})
    config = configs[stage].model_copy(update={"data": rows, "tokenizer": tokenizer})
    for line in check.report(config, samples=0):
        console.say(str(line))


def _stage_first(words: list[str]) -> tuple[str | None, list[str]]:
    """Split words into the section of a stage, None if none is named, and the overrides."""
    if not words or "=" in words[0]:
        return None, words
    if section_of(words[0]) not in STAGES:
        guess = did_you_mean(words[0], NAMES)
        raise UserError(f"there is no stage {words[0]!r}{guess}", f"stages: {', '.join(NAMES)}")
    return section_of(words[0]), words[1:]


@app.command("copy", epilog=example("alignctl presets copy llama2-7b my-model.yaml"))
def copy_preset(
    preset: PresetArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
) -> None:
    """Copy a preset, comments and all, to a file of your own.

    The copy extends what the preset extends; `presets show` prints what that gives. A file of three
    lines that itself extends the preset is often enough.
    """
    inheritance.copy(preset, file)
    console.say(f"wrote {file}; use it with --preset {file}")


@app.command(
    "suggest",
    epilog=example(
        "alignctl presets suggest --load models/llama3-8b --gpus 8 > my-model.yaml",
        "alignctl presets suggest --load models/qwen3-32b --gpus 32 --gpu h100 > my-model.yaml",
    ),
)
def suggest_preset(
    load: Annotated[Path, typer.Option(metavar="DIR", help="The model, in any format.")],
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="GPUs; default: those here."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="As of plan; default: what is here.")
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=1, max=10**6, metavar="GIB", help="Memory of a GPU; default: that GPU's."),
    ] = None,
) -> None:
    """Print a preset made for a model: its architecture, its family's recipe, layouts that fit.

    A stage without --preset takes the same.
    """
    from alignctl.stages.shared import suggestion  # arrays and formats

    if gpus is None and (gpu or gpu_memory):
        raise UserError("--gpu and --gpu-memory need --gpus: how many there are")
    if gpus is None:
        machine = suggestion.this_machine(None, are_gpus=False)
    else:
        machine = suggestion.named_machine(gpus, gpu or "a100-80g", gpu_memory)
    console.emit(suggestion.suggest_for(load, machine).rstrip())
    console.say(f"for {machine}; a file {suggestion.name_for(load)} with this is a preset")


@app.command("validate", epilog=example("alignctl presets validate my-model.yaml other.yaml"))
def validate_presets(
    files: Annotated[list[str], typer.Argument(metavar="NAME|FILE...", help="Presets to check.")],
) -> None:
    """Check presets as a run would, and report every problem."""
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
    console.emit(preset_schema())


@app.command("knobs", epilog=example("alignctl presets knobs > docs/knobs.md"))
def print_knobs() -> None:
    """Print every knob of every stage, its values, default and meaning, as a Markdown page."""
    console.emit(render_knobs().rstrip())
