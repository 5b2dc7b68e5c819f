"""Compare models' answers with a baseline's; or measure reward models on preferences.

With --reward-load and --baseline: how often that reward model prefers what the models say.
Knobs are those of `alignctl generate`, and limit, score_batch.

Without both: how often reward models put the better answer first. Knobs: max_length,
truncation, template, precision, score_batch.
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
from alignctl.config.generation import PairOptions, WinOptions
from alignctl.config.presets.load import options
from alignctl.errors import UserError

app = typer.Typer(**PLAIN)

_NAME = "eval preference"


@app.command(
    "preference",
    help=__doc__,
    epilog=example(
        "alignctl eval preference runs/dpo runs/rlhf --baseline runs/sft \\",
        "  --reward-load runs/reward --data data/prompts.jsonl --output runs/wins",
        "alignctl eval preference runs/reward --data data/pairs/test.jsonl --output runs/accuracy",
    ),
)
def _preference(
    models: MaybeModelsArgument = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts; or preferences, for reward models."),
    ] = None,
    output: MaybeEvalOutputFlag = None,
    reward_load: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Reward model that compares answers.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE", help="What answers are compared with: a model, or its answers."
        ),
    ] = None,
    preset: NamePresetFlag = None,
    tokenizer: TokenizerFlag = None,
    as_json: JSONFlag = False,
) -> None:
    paths, overrides = split_models(models, preset)
    flags: dict[str, Any] = {"data": data, "output": output}
    flags |= {"reward_load": reward_load, "baseline": baseline}
    if preset:
        flags |= _found(preset, flags)
    require_flags(flags, "data", "output")
    flags |= {"models": paths, "tokenizer": tokenizer}
    reward_load, baseline = flags["reward_load"], flags["baseline"]
    if reward_load is None and baseline is None:
        pairs = options(PairOptions, flags, overrides)
        from alignctl.stages import eval_pairs

        measure(_NAME, pairs.output, lambda: eval_pairs.run(pairs, as_json=as_json))
        return
    if reward_load is None or baseline is None:
        missing = "--baseline" if baseline is None else "--reward-load"
        raise UserError(
            f"{missing} is missing",
            "answers are compared with those of --baseline, by the model of --reward-load; without "
            "both, the models are reward models, and --data holds preferences",
        )
    wins = options(WinOptions, flags, overrides)
    from alignctl.stages import eval_preference

    measure(_NAME, wins.output, lambda: eval_preference.run(wins, as_json=as_json))


def _found(preset: str, flags: dict[str, Any]) -> dict[str, Path]:
    """Find by a preset's name what answers are compared with, by which model, on which prompts."""
    return find_by_name(
        flags,
        data=lambda: places.require(places.held_out("alignment"), preset, "--data"),
        output=lambda: places.place("answers", f"{places.stem(preset)}-preference"),
        reward_load=lambda: places.require(("runs/{preset}-reward",), preset, "--reward-load"),
        baseline=lambda: places.require(("runs/{preset}-sft",), preset, "--baseline"),
    )
