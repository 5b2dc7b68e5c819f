"""`alignctl eval ...`: how good models are, several of them in one table."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from alignctl.errors import UserError
from alignctl.flags import TokenizerFlag, example

app = typer.Typer(
    name="eval",
    help="Measure models: several of them make one table.",
    epilog=example(
        "alignctl eval math runs/sft runs/grpo --data data/gsm8k/test.jsonl --output runs/math",
    ),
    rich_markup_mode=None,
    no_args_is_help=True,
)

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... [key=value...]",
        help="Models (Hugging Face, Megatron, or runs), and knobs such as max_new_tokens=256.",
    ),
]
EvalOutputFlag = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder for the answers and the result.")
]
JSONFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON, not a table.")]

_OVERRIDE = re.compile(r"[a-z_][a-z0-9_.]*=")


@app.command(
    "math",
    epilog=example(
        "alignctl eval math runs/sft runs/grpo --data data/gsm8k/test.jsonl --output runs/math",
        "alignctl eval math runs/grpo --data data/gsm8k/test.jsonl --output runs/math-8 \\",
        "  samples=8 temperature=0.7",
    ),
)
def math(
    models: ModelsArgument,
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Problems: GSM8K's rows, or prompts with answers.")
    ],
    output: EvalOutputFlag,
    tokenizer: TokenizerFlag = None,
    as_json: JSONFlag = False,
) -> None:
    """Solve problems whose answers are compared by rule: exact match and pass@k.

    Knobs are those of `alignctl generate`, and limit, workers, timeout_seconds. The same command
    goes on after an interruption.
    """
    from alignctl.config.generation import MathOptions
    from alignctl.config.load import options

    paths, overrides = split(models)
    flags = {"models": paths, "data": data, "output": output, "tokenizer": tokenizer}
    found = options(MathOptions, flags, overrides)
    from alignctl.stages import eval_math

    eval_math.run(found, as_json=as_json)


@app.command(
    "preference",
    epilog=example(
        "alignctl eval preference runs/dpo runs/rlhf --baseline runs/sft \\",
        "  --reward-load runs/reward --data data/prompts.jsonl --output runs/wins",
        "alignctl eval preference runs/reward --data data/pairs/test.jsonl --output runs/accuracy",
    ),
)
def preference(
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
    """Compare models' answers with a baseline's; or measure reward models on preferences.

    With --reward-load and --baseline: how often that reward model prefers what the models say.
    Knobs are those of `alignctl generate`, and limit, score_batch.

    Without both: how often reward models put the better answer first. Knobs: max_length,
    truncation, template, precision, score_batch.
    """
    from alignctl.config.generation import PairOptions, WinOptions
    from alignctl.config.load import options

    paths, overrides = split(models)
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


def register(command_line: typer.Typer) -> None:
    """Adds the command group to the command line."""
    command_line.add_typer(app)


def split(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Models and overrides, which a command line holds in any order.

    Raises:
        UserError: There is no model, or one is there twice.
    """
    overrides = [each for each in arguments if _OVERRIDE.match(each) and not Path(each).exists()]
    models = [Path(each) for each in arguments if each not in overrides]
    if not models:
        raise UserError("no model was given", "name one or more, such as runs/sft")
    for model in models:
        if models.count(model) > 1:
            raise UserError(f"{model}: this model is there twice")
    return models, overrides
