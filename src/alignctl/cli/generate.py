"""Answer prompts with a model, greedily unless told otherwise.

Knobs: max_prompt_length, max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty,
samples, seed, template, precision, tp, batch, kv_cache_gib, gpu_memory_utilization; --dry-run
prints their values. The same command goes on after an interruption.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from alignctl import console
from alignctl.cli.flags import (
    DryRunFlag,
    MaybePresetFlag,
    OverridesArgument,
    TokenizerFlag,
    example,
    find_by_name,
    require_flags,
)
from alignctl.cli.lazy import PLAIN
from alignctl.config import places
from alignctl.config.generation import GenerateOptions
from alignctl.config.inputs import not_here, refuse_inside
from alignctl.config.presets.load import load_preset, options

PROMPTS = (*places.held_out("alignment"), *places.held_out("math"))
"""Where prompts are by convention."""

app = typer.Typer(**PLAIN)


@app.command(
    "generate",
    help=__doc__,
    epilog=example(
        "alignctl generate --load runs/llama2-7b-sft --data prompts.txt --output answers.jsonl",
        "alignctl generate --load models/mg --data prompts.jsonl --output answers.jsonl \\",
        "  samples=4 temperature=0.7 top_p=0.9 max_new_tokens=1024",
    ),
)
def _generate(
    load: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model: Hugging Face, Megatron or a run.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Prompts: a .txt file with one in each line, or rows as JSON."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answers: .jsonl, or .txt with one in each line."),
    ] = None,
    preset: MaybePresetFlag = None,
    tokenizer: TokenizerFlag = None,
    dry_run: DryRunFlag = False,
    overrides: OverridesArgument = None,
) -> None:
    flags: dict[str, Any] = {"load": load, "data": data, "output": output}
    if preset:
        flags |= find_by_name(
            flags,
            load=lambda: places.exported(places.require_policy(preset)),
            data=lambda: places.require(PROMPTS, preset, "--data"),
            output=lambda: places.place("answers", f"{places.stem(preset)}.jsonl"),
        )
    flags |= {"tokenizer": tokenizer, "model": load_preset(preset).model if preset else None}
    require_flags(flags, "load", "data", "output")
    found = options(GenerateOptions, flags, overrides or [])
    named = {"--load": found.load, "--data": found.data, "--tokenizer": tokenizer}
    refuse_inside("--output", found.output, named.items())
    if dry_run:
        console.note_all(not_here(named.items()))
        console.emit(found.model_dump_json(indent=2))
        return
    from alignctl.stages import generate  # arrays and files of checkpoints: not for a typo

    generate.run(found)
