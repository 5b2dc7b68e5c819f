"""What a stage says of a run that is finished, and which command is usual after it."""

import shlex
from pathlib import Path
from typing import Any

from alignctl import console
from alignctl.config.places import place
from alignctl.config.presets.library import is_ours
from alignctl.config.run import TrainingConfig
from alignctl.reporting.progress.ending import tell
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.stage import Stage

_MEASURES = ("loss", "accuracy", "score", "kl")
"""What is told of a run, where it has it."""


def tell_run(stage: Stage[Any], config: TrainingConfig, seconds: float | None) -> None:
    """Say what became of a run, and print its folder, if it is finished.

    Args:
        stage: The stage.
        config: The run.
        seconds: How long it took; None: it was finished before.
    """
    result = RunFolder(config.output).read_result()
    if result is None:
        return
    following = next_command(stage, config)
    if seconds is None:
        console.say(f"next: {following}")
    else:
        tell(_describe(result), seconds, config.output, following)
    console.emit(str(config.output))


def next_command(stage: Stage[Any], config: TrainingConfig) -> str:
    """Return the command that usually goes on with what a run has made."""
    run = config.output
    if stage.following is None and config.engine == "deepspeed" and config.lora is None:
        # Its checkpoints are Hugging Face folders: there is nothing to convert.
        return generate_command(run)
    # A preset that was made for the model is no file: it is made again from the run.
    is_there = is_ours(config.preset) or Path(config.preset).is_file()
    words = stage.following or "alignctl convert-mg2hf --load {run} --save {model}"
    return words.format(
        preset=f" --preset {shlex.quote(config.preset)}" if is_there else "",
        load=shlex.quote(str(config.load)),
        run=shlex.quote(str(run)),
        model=shlex.quote(str(place("models", run.name))),
    )


def generate_command(model: Path) -> str:
    """Return the command that asks a model."""
    answers = place("answers", f"{model.name}.jsonl")
    return shlex.join(
        [
            "alignctl",
            "generate",
            "--load",
            str(model),
            "--data",
            "PROMPTS",
            "--output",
            str(answers),
        ]
    )


def _describe(result: dict[str, Any]) -> str:
    """Describe a result in a few words: both kinds of stages write what they measured last."""
    first, last = result.get("first_validation"), result.get("validation")
    first = first or {"loss": result.get("first_validation_loss")}
    words = [f"{result['stage']}: {result['steps']:,} steps"]
    shown = last or result.get("last") or {"loss": result.get("loss")}
    what = "held out: " if last else ""
    measures = [
        f"{name} {_course(first.get(name) if last else None, shown[name])}"
        for name in _MEASURES
        if shown.get(name) is not None
    ]
    return ", ".join([*words, *([what + ", ".join(measures)] if measures else [])])


def _course(first: object, last: object) -> str:
    numbers = [
        f"{float(each):.4g}" for each in (first, last) if isinstance(each, int | float | str)
    ]
    return " -> ".join(numbers)
