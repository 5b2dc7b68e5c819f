"""Solve problems whose answers are compared by rule: exact match and pass@k.

Knobs are those of `alignctl generate`, and limit, workers, timeout_seconds. The same command
goes on after an interruption.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from alignctl.cli.eval.models import (
    JSONFlag,
    MaybeEvalOutputFlag,
    MaybeModelsArgument,
    measure,
    split_models,
)
from alignctl.cli.flags import (
    NamePresetFlag,
    TokenizerFlag,
    example,
    find_by_name,
    require_flags,
)
from alignctl.cli.lazy import PLAIN
from alignctl.config import places
from alignctl.config.generation import MathOptions
from alignctl.config.presets.load import options

app = typer.Typer(**PLAIN)


@app.command(
    "math",
    help=__doc__,
    epilog=example(
        "alignctl eval math runs/sft runs/grpo --data data/gsm8k/math/dev.jsonl --output runs/math",
        "alignctl eval math runs/grpo --data data/gsm8k/math/dev.jsonl --output runs/math-8 \\",
        "  samples=8 temperature=0.7",
    ),
)
def _math(
    models: MaybeModelsArgument = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Problems: GSM8K's rows, or prompts with answers."),
    ] = None,
    output: MaybeEvalOutputFlag = None,
    preset: NamePresetFlag = None,
    tokenizer: TokenizerFlag = None,
    as_json: JSONFlag = False,
) -> None:
    paths, overrides = split_models(models, preset)
    flags: dict[str, Any] = {"data": data, "output": output}
    if preset:
        flags |= find_by_name(
            flags,
            data=lambda: places.require(places.held_out("math"), preset, "--data"),
            output=lambda: places.place("answers", f"{places.stem(preset)}-math"),
        )
    require_flags(flags, "data", "output")
    flags |= {"models": paths, "tokenizer": tokenizer}
    found = options(MathOptions, flags, overrides)
    from alignctl.stages import eval_math  # arrays and files of checkpoints: not for a typo

    measure("eval math", found.output, lambda: eval_math.run(found, as_json=as_json))
