"""Try rewards of one's own on answers, before a run uses them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from alignctl import console
from alignctl.cli.eval.models import JSONFlag
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST
from alignctl.config.presets.load import options
from alignctl.config.rewards import RewardFunction

app = typer.Typer(name="rewards", help=__doc__, **PLAIN)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@app.command(
    "test",
    epilog=example(
        "alignctl rewards test my_reward.py --data rows.jsonl",
        "alignctl rewards test my_reward.py --data answers.jsonl name=brevity batched=true",
        "alignctl rewards test http://127.0.0.1:8000/score --data answers.jsonl",
    ),
)
def _test(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="A Python file, or a server.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Prompts with answers: response, messages or answer in each row."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Such as name=score batched=true."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="N", help="Only the first N rows.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="Processes of a function in a file.")
    ] = 1,
    as_json: JSONFlag = False,
) -> None:
    """Score the answers that rows have themselves, and print scores, failures and time.

    Keys are those of an entry of score.functions: see docs/rewards.md.
    """
    named: dict[str, Any] = {"url": source} if "://" in source else {"file": Path(source)}
    function = options(RewardFunction, named, overrides or [])
    from alignctl.stages import rewards  # what reads rows: not for a typo

    rewards.test(function, data, limit=limit, workers=workers, as_json=as_json)
