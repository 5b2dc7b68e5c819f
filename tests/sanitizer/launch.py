"""Starts a stage as its command does, with ranks that run under the sanitizer.

python -m tests.sanitizer.launch sft --preset tiny.yaml --load hf --data rows.jsonl ...
"""

import sys
from dataclasses import dataclass, fields
from typing import Any

import torch
import typer

from alignctl import console
from alignctl.cli.train import make_app
from alignctl.errors import AlignctlError
from alignctl.stages.shared.stage import Stage, load_stage


@dataclass(frozen=True)
class Watched(Stage[Any]):
    """A stage whose ranks are started by `tests.sanitizer.rank`."""

    @property
    def module(self) -> str:
        return "tests.sanitizer.rank"


def main() -> None:
    anything: Any = torch.cuda
    anything.device_count = lambda: 2  # as many as ranks, which take the CPU for them
    stage = load_stage(sys.argv[1])
    watched = Watched(**{each.name: getattr(stage, each.name) for each in fields(stage)})
    try:
        typer.main.get_command(make_app(watched))(sys.argv[2:], standalone_mode=False)
    except AlignctlError as error:
        sys.exit(console.report(error))


if __name__ == "__main__":
    main()
