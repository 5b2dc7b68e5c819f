"""Offline inference: a file of prompts in, a file of answers out.

    alignctl generate --load runs/sft --data prompts.jsonl --output answers.jsonl max_new_tokens=256

One process, or with `tp` several that take the same steps. The checkpoint, of whatever kind, is
streamed into vLLM by the weight map; nothing is converted on disk. Answers are written in the order
of the prompts, each row as soon as it and those before it are done. The same command goes on after
an interruption; what is answered depends neither on where that was nor on how many are answered at
the same time, but for rounding.
"""

import shlex
from pathlib import Path

from alignctl import console
from alignctl.config.generation import GenerateOptions
from alignctl.errors import UserError
from alignctl.evaluation import prompts
from alignctl.evaluation.answering import answer
from alignctl.evaluation.answers import check_suffix
from alignctl.evaluation.generation import Generator
from alignctl.evaluation.prompts import TEXT_SUFFIX
from alignctl.reporting.progress.ending import finishing


def run(options: GenerateOptions) -> None:
    """Answer the prompts, and print the file that was written.

    Raises:
        UserError: An input is wrong; nothing was started.
        RunError: vLLM failed, or the disk is full. What was answered is kept.
    """
    check_suffix(options.output)
    with finishing("generate", "answered", options.output, _following(options.output)):
        _answer(options)
    console.emit(str(options.output))


def _following(answers: Path) -> str:
    """Return the command that shows a file of answers."""
    if answers.suffix == TEXT_SUFFIX:
        return shlex.join(["less", str(answers)])
    page = str(answers.with_suffix(".html"))
    return shlex.join(["alignctl", "report", str(answers), "--output", page])


def _answer(options: GenerateOptions) -> None:
    if options.output.resolve() == options.data.resolve():
        raise UserError(f"--output {options.output} is --data itself", "give another name")
    file = prompts.read(options.data)
    generator = Generator(options.load, options, tokenizer=options.tokenizer, model=options.model)
    answer(generator, file, options.output)
