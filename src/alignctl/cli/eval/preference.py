"""Compare models' answers with a baseline's; or measure reward models on preferences.

With --reward-load and --baseline: how often that reward model prefers what the models say.
Knobs are those of `alignctl generate`, and limit, score_batch.

Without both: how often reward models put the better answer first. Knobs: max_length,
truncation, template, precision, score_batch.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.eval.models import EvalOutputFlag, JSONFlag, ModelsArgument, split_models
from alignctl.cli.flags import TokenizerFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.config.generation import PairOptions, WinOptions
from alignctl.config.presets.load import options
from alignctl.errors import UserError

app = typer.Typer(**PLAIN)


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
    models: ModelsArgument,
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Prompts; or preferences, for reward models.")
    ],
    output: EvalOutputFlag,
    reward_load: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Reward model that compares answers.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE", help="What answers are compared with: a model, or its answers."
        ),
    ] = None,
    tokenizer: TokenizerFlag = None,
    as_json: JSONFlag = False,
) -> None:
    paths, overrides = split_models(models)
    flags = {"models": paths, "data": data, "output": output, "tokenizer": tokenizer}
    if reward_load is None and baseline is None:
        pairs = options(PairOptions, flags, overrides)
        from alignctl.stages import eval_pairs

        eval_pairs.run(pairs, as_json=as_json)
        return
    if reward_load is None or baseline is None:
        missing = "--baseline" if baseline is None else "--reward-load"
        raise UserError(
            f"{missing} is missing",
            "answers are compared with those of --baseline, by the model of --reward-load; without "
            "both, the models are reward models, and --data holds preferences",
        )
    wins = options(
        WinOptions, {**flags, "reward_load": reward_load, "baseline": baseline}, overrides
    )
    from alignctl.stages import eval_preference

    eval_preference.run(wins, as_json=as_json)
