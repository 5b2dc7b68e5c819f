"""Hand checkpoints to lm-evaluation-harness; needs `pip install -e '.[lm-eval]'`.

Knobs: num_fewshot, batch, limit, chat_template, precision.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.eval.models import EvalOutputFlag, JSONFlag, ModelsArgument, measure, split_models
from alignctl.cli.flags import TokenizerFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.config.generation import HarnessOptions
from alignctl.config.presets.load import options

app = typer.Typer(**PLAIN)


@app.command(
    "lm-eval",
    help=__doc__,
    epilog=example(
        "alignctl eval lm-eval runs/sft runs/dpo --tasks hellaswag,arc_easy --output runs/harness",
        "alignctl eval lm-eval runs/sft --tasks mine --include-path tasks --output runs/mine "
        "limit=100",
    ),
)
def _lm_eval(
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
    paths, overrides = split_models(models)
    flags = {
        "models": paths,
        "tasks": [task.strip() for task in tasks.split(",") if task.strip()],
        "output": output,
        "include_path": include_path,
        "tokenizer": tokenizer,
    }
    found = options(HarnessOptions, flags, overrides)
    from alignctl.stages import eval_lm

    measure("eval lm-eval", found.output, lambda: eval_lm.run(found, as_json=as_json))
