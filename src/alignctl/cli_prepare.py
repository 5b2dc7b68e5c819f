"""The commands below `alignctl prepare`: from files as downloaded to what the stages read."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl import console
from alignctl.flags import example

app = typer.Typer(
    name="prepare",
    help="Clean text, tokenise it, turn downloads into training rows, and look at the result.",
    epilog=example(
        "alignctl prepare clean raw/ --output data/clean",
        "alignctl prepare tokenize data/clean --tokenizer models/bloom-7b --append-eod "
        "--output data/wiki",
        "alignctl prepare inspect data/wiki --tokenizer models/bloom-7b",
    ),
    rich_markup_mode=None,
)

InputsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Files or folders of text or rows.", show_default=False),
]
WorkersFlag = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes; default: one per core.")
]
KeyFlag = Annotated[str, typer.Option(metavar="KEY", help="Key of the text in each row.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@app.command(
    "tokenize",
    epilog=example(
        "alignctl prepare tokenize data/clean --tokenizer models/bloom-7b --append-eod "
        "--output data/wiki"
    ),
)
def tokenize(
    inputs: InputsArgument,
    tokenizer: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with the tokenizer of the model.")
    ],
    output: Annotated[
        Path,
        typer.Option(metavar="NAME", help="Writes NAME.bin, NAME.idx and NAME.json."),
    ],
    key: KeyFlag = "text",
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End every document with EOS.")
    ] = False,
    workers: WorkersFlag = None,
) -> None:
    """Turn text into Megatron's indexed dataset.

    The bytes do not depend on the number of workers. An interrupted run goes on where it stopped
    when the same command is started again.
    """
    from alignctl.corpus.blocks import find_texts, total_bytes
    from alignctl.corpus.manifest import prefix_of
    from alignctl.corpus.pool import available_cores
    from alignctl.corpus.tokenization import Counts, Options
    from alignctl.corpus.tokenization import tokenize as run
    from alignctl.reporting.corpus_progress import CorpusProgress

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

    manifest = run(
        options,
        note,
        lambda counts: progress.resume(counts.consumed, counts.text_bytes, counts.tokens),
    )
    left_out = f", {last.empty:,} empty ones left out" if last.empty else ""
    console.say(
        f"{options.prefix}: {manifest.documents:,} documents{left_out}, {manifest.tokens:,} tokens "
        f"({manifest.dtype}), {manifest.bytes / 1e6:.1f} MB; "
        f"{progress.speed(last.text_bytes, last.tokens)} with {options.workers} "
        f"{'worker' if options.workers == 1 else 'workers'}"
    )


@app.command(
    "inspect", epilog=example("alignctl prepare inspect data/wiki --tokenizer models/bloom-7b")
)
def inspect(
    dataset: Annotated[
        Path, typer.Argument(metavar="NAME", help="Dataset: its path without .bin and .idx.")
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Tokenizer to decode samples with; default: show ids."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Documents to show.")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the checksums of both files.")
    ] = False,
) -> None:
    """Show what an indexed dataset holds."""
    from alignctl.corpus.inspection import describe
    from alignctl.corpus.manifest import prefix_of
    from alignctl.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer) if tokenizer else None
    console.emit(describe(prefix_of(dataset), loaded, samples, verify))
