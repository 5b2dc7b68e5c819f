"""Turn text into Megatron's indexed dataset.

The bytes do not depend on the number of workers. An interrupted run goes on where it stopped
when the same command is started again.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from alignctl import console
from alignctl.cli.flags import WaitFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.cli.prepare.common import (
    InputsArgument,
    KeyFlag,
    WorkersFlag,
    refuse_inside_inputs,
    waiting,
)
from alignctl.corpus.blocks import find_texts, total_bytes
from alignctl.corpus.manifest import prefix_of
from alignctl.corpus.pool import available_cores
from alignctl.corpus.tokenization import Counts, Options
from alignctl.corpus.tokenization import tokenize as run
from alignctl.reporting.progress.bytes import size
from alignctl.reporting.progress.corpus import CorpusProgress
from alignctl.reporting.progress.ending import finishing

TokenizerFlag = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder with the tokenizer of the model.")
]
OutputFlag = Annotated[
    Path,
    typer.Option(metavar="NAME", help="Writes NAME.bin, NAME.idx and NAME.json."),
]
AppendEodFlag = Annotated[bool, typer.Option("--append-eod", help="End every document with EOS.")]

app = typer.Typer(**PLAIN)


@app.command(
    "tokenize",
    help=__doc__,
    epilog=example(
        "alignctl prepare tokenize data/clean --tokenizer models/bloom-7b --append-eod "
        "--output data/wiki"
    ),
)
def _tokenize(
    inputs: InputsArgument,
    tokenizer: TokenizerFlag,
    output: OutputFlag,
    key: KeyFlag = "text",
    append_eod: AppendEodFlag = False,
    workers: WorkersFlag = None,
    wait: WaitFlag = False,
) -> None:
    refuse_inside_inputs(output, inputs)
    files = tuple(find_texts(inputs))
    options = Options(
        files=files,
        prefix=prefix_of(output),
        tokenizer=tokenizer,
        key=key,
        append_eod=append_eod,
        workers=workers or available_cores(),
    )
    progress = CorpusProgress("tokenising", total_bytes(files))
    last = Counts()

    def note(counts: Counts) -> None:
        nonlocal last
        last = counts
        progress(counts.consumed, counts.text_bytes, counts.tokens)

    def resume(counts: Counts) -> None:
        nonlocal last
        last = counts
        progress.resume(counts.consumed, counts.text_bytes, counts.tokens)

    following = shlex.join(
        ["alignctl", "pretrain", "--preset", "NAME", "--data", str(options.prefix)]
    )
    with finishing("prepare tokenize", "tokenised", options.prefix, following):
        manifest = run(options, note, resume, waiting(wait))
    if last == Counts():
        console.say(f"{options.prefix} is complete already: nothing is left to do")
        return
    left_out = f", {last.empty:,} empty ones left out" if last.empty else ""
    console.say(
        f"{options.prefix}: {manifest.documents:,} documents{left_out}, {manifest.tokens:,} tokens "
        f"({manifest.dtype}), {size(manifest.bytes)}; "
        f"{progress.speed(last.text_bytes, last.tokens)} with {options.workers} "
        f"{'worker' if options.workers == 1 else 'workers'}"
    )
