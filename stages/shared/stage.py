"""A stage as one value: all that the rest of alignctl knows of it.

Each module of `alignctl.stages` that trains ends with its `STAGE`. The command line, `prepare
check`, `plan`, `--simulate` and `launch` are written for any of them; which ones there are is said
once, by the sections of a preset (`config.stages`). To import such a module is cheap: libraries
are imported when one of its functions is called.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from alignctl.config.inputs import Input
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Role
from alignctl.config.stages import section_of
from alignctl.launch import worker
from alignctl.run_folder import RunFolder

if TYPE_CHECKING:
    from alignctl.algorithms.loss import Loss
    from alignctl.checkpoints.source import Source
    from alignctl.data.prompt_store import PromptData
    from alignctl.launch.attempt import Attempt
    from alignctl.on_policy.loop import Learner
    from alignctl.on_policy.models import Models

C = TypeVar("C", bound=TrainingConfig)

Rows = Literal["documents", "preferences", "prompts", "datasets"]
"""What a stage reads: texts to learn, answers to compare, prompts to answer, or indexed
datasets."""


def do_nothing(*_: Any) -> None:
    """Do nothing: what most stages do at some point."""


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A stage that trains.

    Attributes:
        name: The subcommand.
        config: The class of its configuration, which knows its models (`roles`).
        help: What the command says of itself: a line, and after an empty one what else matters.
        examples: Command lines.
        inputs: What it reads, with the flags that name it.
        rows: What its data are.
        work: What each rank of the torchrun job does: load or resume, train, save.
        starts_from: Roles that the model of `--load` may have.
        after_rows: Does what is left to do before the ranks start, when the rows are prepared.
        loss: Makes what is minimised, where rows are learned from; for a simulation too.
        learner: Makes what learns from an episode, where the policy writes the answers itself.
        following: The command that usually comes after it, with {preset} (the flag), {load} and
            {run} in it; None: what it made is converted back.
    """

    name: str
    config: type[C]
    help: str
    examples: tuple[str, ...]
    inputs: tuple[Input, ...]
    rows: Rows
    work: Callable[[C, RunFolder], None]
    starts_from: tuple[Role, ...] = ("policy",)
    after_rows: "Callable[[C, Source, Attempt], None]" = field(default=do_nothing)
    loss: "Callable[[C], Loss] | None" = None
    learner: "Callable[[C, Models, PromptData], Learner] | None" = None
    following: str | None = None

    @property
    def module(self) -> str:
        """Program that torchrun starts on every rank, with the run folder as its argument."""
        return f"alignctl.stages.{section_of(self.name)}"

    def run_rank(self) -> None:
        """Do the work of one rank, as the program that torchrun has started, and end it."""

        def work(folder: RunFolder) -> None:
            text = folder.config.read_text(encoding="utf-8")
            self.work(self.config.model_validate_json(text), folder)

        worker.run(work, sys.argv[1])


def load_stage(name: str) -> Stage[Any]:
    """Import the stage of a subcommand."""
    stage: Stage[Any] = import_module(f"alignctl.stages.{section_of(name)}").STAGE
    return stage
