"""What a stage would do with a file of rows: its own preparation, into a folder that is not kept.

    alignctl prepare check sft data/train.jsonl --preset llama2-7b --tokenizer models/llama2-7b

No model is opened and no process started.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from alignctl import console
from alignctl.config.run import TrainingConfig
from alignctl.data.tokenizer import check_fits, load_tokenizer
from alignctl.errors import UserError
from alignctl.stages.shared.rows import KINDS
from alignctl.stages.shared.stage import load_stage


def run(config: TrainingConfig, samples: int) -> None:
    """Print what `report` says."""
    for line in report(config, samples):
        if isinstance(line, Text):
            Console(file=sys.stdout).print(line, soft_wrap=True)
        else:
            console.emit(line)


def report(config: TrainingConfig, samples: int) -> Iterator[str | Text]:
    """Say what becomes of the rows, how far the run goes with them, how long they are, and some.

    Args:
        config: The stage's configuration; its model, engine and layout are not used.
        samples: Rows to show.

    Raises:
        UserError: For whatever the stage would refuse in the rows, or in the tokenizer.
    """
    if config.tokenizer is None:
        raise UserError("--tokenizer is missing: the folder of the model's tokenizer")
    tokenizer = load_tokenizer(config.tokenizer)
    check_fits(tokenizer, config.architecture.vocab_size)
    kind = KINDS[load_stage(config.stage).rows]
    with TemporaryDirectory(prefix="alignctl-check-") as scratch:
        folder = kind.prepare(config, tokenizer, Path(scratch))
        yield from kind.describe(config, folder)
        yield from kind.show(folder, tokenizer, samples)
