"""Offline inference: a file of prompts in, a file of answers out.

    alignctl generate --load runs/sft --data prompts.jsonl --output answers.jsonl max_new_tokens=256

One process, or with `tp` several that take the same steps. The checkpoint, of whatever kind, is
streamed into vLLM by the weight map; nothing is converted on disk. Answers are written in the order
of the prompts, each row as soon as it and those before it are done. The same command goes on after
an interruption; what is answered depends neither on where that was nor on how many are answered at
the same time, but for rounding.
"""

from alignctl import console
from alignctl.config.generation import GenerateOptions
from alignctl.errors import UserError
from alignctl.evaluation import prompts
from alignctl.evaluation.answering import answer
from alignctl.evaluation.answers import check_suffix
from alignctl.evaluation.generation import Generator


def run(options: GenerateOptions) -> None:
    """Answer the prompts, and print the file that was written.

    Raises:
        UserError: An input is wrong; nothing was started.
        RunError: vLLM failed, or the disk is full. What was answered is kept.
    """
    check_suffix(options.output)
    if options.output.resolve() == options.data.resolve():
        raise UserError(f"--output {options.output} is --data itself", "give another name")
    file = prompts.read(options.data)
    generator = Generator(options.load, options, tokenizer=options.tokenizer, model=options.model)
    answer(generator, file, options.output)
    console.emit(str(options.output))
