"""List the layouts that fit, with memory and speed, the fastest first.

Memory and time are computed; --simulate on the stage runs a step of the layout.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from alignctl import console
from alignctl.cli.flags import OverridesArgument, PresetFlag, StageName, example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST_PROCESSES
from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.stages import section_of
from alignctl.errors import UserError
from alignctl.planning.devices import device
from alignctl.planning.layouts import Plan, fitting, look_at

_SHOWN = 12

GPUS = "a100-80g, a800, h100, h800, h200, h20, b200, l40s, a10, rtx4090 or mi300x"
"""The names of devices.yaml, which is not read for a help text."""

app = typer.Typer(**PLAIN)


@app.command(
    "plan",
    help=__doc__,
    epilog=example(
        "alignctl plan --preset llama2-70b --gpus 32",
        "alignctl plan --preset llama2-7b --stage rlhf --gpus 8 --gpu h100 --json",
        "alignctl plan --preset llama2-13b --gpus 8 batch.seq_length=4096",
    ),
)
def _plan(
    preset: PresetFlag,
    stage: Annotated[StageName, typer.Option(help="What is to be run.")] = "sft",
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="GPUs; default: the preset's."),
    ] = None,
    gpu: Annotated[str, typer.Option(metavar="NAME", help=f"{GPUS}.")] = "a100-80g",
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=1, max=10**6, metavar="GIB", help="Memory of a GPU; default: that GPU's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: OverridesArgument = None,
) -> None:
    kind = device(gpu)
    memory = gpu_memory or kind.memory_gib
    flags = {"output": Path("runs")}
    config = resolve(STAGES[section_of(stage)], preset, flags, overrides or [])
    count = gpus or config.world_size
    plans = fitting(config, kind, gpus=count, gpu_memory_gib=memory)
    if not plans:
        verdict = look_at(config, kind, memory).report.verdict
        raise UserError(
            f"no layout of {preset} {stage} fits onto {count} x {gpu} with {memory:g} GiB",
            "give more --gpus, a shorter batch.seq_length or lora.rank=16; the preset's own "
            f"layout on {config.world_size} GPUs {verdict}",
        )
    own = look_at(config, kind, memory) if count == config.world_size else None
    if as_json:
        console.emit(json.dumps([each.row() for each in plans], indent=2))
        return
    console.emit(
        f"{preset} {stage} on {count} x {gpu} with {memory:g} GiB: the layouts that fit, the "
        "fastest first; computed, not measured\n"
    )
    console.emit(_table(_rows(plans[:_SHOWN], own)))
    console.emit("\nmarked: * the fastest" + ("" if own is None else ", = the preset's own"))
    console.emit(f"\nbest: {' '.join(plans[0].overrides)}")
    if len(plans) > _SHOWN:
        console.say(f"{len(plans) - _SHOWN} slower ones are left out; --json has them all")


def _rows(plans: list[Plan], own: Plan | None) -> list[dict[str, Any]]:
    """Describe the layouts, and the preset's own behind them where it is none of them."""
    rows = [each.row() | {"mark": "*" if number == 0 else ""} for number, each in enumerate(plans)]
    for row in rows:
        if own is not None and row["overrides"] == own.overrides:
            row["mark"] += "="
            return rows
    return rows if own is None else [*rows, own.row() | {"mark": "="}]


def _table(rows: list[dict[str, Any]]) -> str:
    """Write the layouts as a table, some of them marked."""
    head = ["", "TP", "PP", "DP", "micro batch", "recompute", "offload", "GiB", "s/step"]
    lines = [[*head, "tokens/s/GPU", "MFU"]]
    for row in rows:
        lines.append(
            [
                row["mark"],
                *(str(row[key]) for key in ("tp", "pp", "dp")),
                str(row.get("micro_batch_size") or f"{row['micro_batch_tokens']:,} tokens"),
                row["recompute"],
                "yes" if row["offload"] else "no",
                f"{row['peak_gib']:.1f}",
                f"{row['seconds']:.2f}",
                f"{row['tokens_per_second_per_gpu']:,.0f}",
                f"{row['mfu']:.0%}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
