"""Say what a stage would do with rows: kept, cut, dropped and why, and one as it is learned.

It is the stage's own preparation; nothing is kept, no model is opened, no GPU is needed.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.flags import OverridesArgument, PresetFlag, StageName, ValidationDataFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST
from alignctl.config.places import place
from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.stages import section_of
from alignctl.reporting.progress.alive import alive
from alignctl.sources.hub import fetch_inputs
from alignctl.stages.shared import check
from alignctl.stages.shared.stage import load_stage

app = typer.Typer(**PLAIN)


@app.command(
    "check",
    help=__doc__,
    epilog=example(
        "alignctl prepare check sft data/hh/sft --preset llama2-7b --tokenizer models/llama2-7b",
        "alignctl prepare check grpo data/gsm8k/math --preset llama2-7b "
        "--tokenizer models/llama2-7b data.max_prompt_length=256",
        "alignctl prepare check sft 'data.blend={data/gsm8k/sft: 3, chats.jsonl: 1}' "
        "--preset llama2-7b --tokenizer models/llama2-7b",
    ),
)
def _check(
    stage: Annotated[
        StageName,
        typer.Argument(metavar="STAGE", help="Stage that will read the rows.", show_default=False),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="File or folder of rows, or a name on the hub; or data.blend={...} in its place.",
        ),
    ],
    preset: PresetFlag,
    tokenizer: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with the tokenizer of the model.")
    ],
    overrides: OverridesArgument = None,
    validation_data: ValidationDataFlag = None,
    samples: Annotated[int, typer.Option(min=0, max=MOST, metavar="N", help="Rows to show.")] = 1,
) -> None:
    overrides = overrides or []
    is_blend = str(data).startswith("data.blend=")
    if is_blend:
        overrides = [str(data), *overrides]
    flags = {
        "data.train": None if is_blend else data,
        "data.validation": validation_data,
        "tokenizer": tokenizer,
        "output": place("runs", "check"),
    }
    config = resolve(STAGES[section_of(stage)], preset, flags, overrides)
    config = fetch_inputs(config, load_stage(stage).inputs)
    with alive("prepare check"):
        check.run(config, samples)
