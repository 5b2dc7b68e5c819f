"""Merge rows, shuffle them, and cut them into files of about the same size."""

from typing import Annotated

import typer

from alignctl import console
from alignctl.cli.flags import WaitFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.cli.prepare.common import (
    CompressFlag,
    InputsArgument,
    OutputFlag,
    after_text,
    refuse_inside_inputs,
    unless_made,
    waiting,
)
from alignctl.config.bounds import LARGEST_SEED, MOST
from alignctl.config.convert import size_in_bytes
from alignctl.corpus.blocks import find_texts, total_bytes
from alignctl.corpus.shards import Options, recipe
from alignctl.corpus.shards import shard as run
from alignctl.reporting.progress.bytes import size as bytes_in_words
from alignctl.reporting.progress.corpus import CorpusProgress
from alignctl.reporting.progress.ending import finishing

app = typer.Typer(**PLAIN)


@app.command(
    "shard",
    help=__doc__,
    epilog=example(
        "alignctl prepare shard data/clean --output data/shards --shuffle --lines 100000",
        "alignctl prepare shard a.jsonl b.jsonl.gz --output data/shards --bytes 500MB",
    ),
)
def _shard(
    inputs: InputsArgument,
    output: OutputFlag,
    lines: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="N", help="Most rows of a file.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="Most bytes before compression, as 500MB."),
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Shuffle the rows.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, metavar="N", help="What decides the order.")
    ] = 1234,
    compress: CompressFlag = "zst",
    wait: WaitFlag = False,
) -> None:
    refuse_inside_inputs(output, inputs)
    files = tuple(find_texts(inputs))
    options = Options(
        files=files,
        folder=output,
        lines=lines,
        bytes=size_in_bytes("--bytes", size) if size else None,
        shuffle=shuffle,
        seed=seed,
        compression=compress,
    )
    with (
        finishing("prepare shard", "sharded", output, after_text(output)),
        unless_made(output, lambda: recipe(options)),
    ):
        shards = run(options, CorpusProgress("sharding", total_bytes(files)), waiting(wait))
        rows, written = sum(s.lines for s in shards), sum(s.record.bytes for s in shards)
        many = f"{len(shards):,} {'file' if len(shards) == 1 else 'files'}"
        console.say(f"{output}: {rows:,} rows in {many}, {bytes_in_words(written)}")
