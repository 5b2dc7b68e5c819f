"""The commands below `alignctl prepare`: from files as downloaded to what the stages read."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignctl import console
from alignctl.config.bounds import LARGEST_SEED, MOST, MOST_PROCESSES
from alignctl.errors import TakenError
from alignctl.flags import (
    OverridesArgument,
    PresetFlag,
    RowsStage,
    ValidationDataFlag,
    WaitFlag,
    example,
)

if TYPE_CHECKING:
    from alignctl.sources.formats import Name

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
    int | None,
    typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Processes; default: one per core."),
]
KeyFlag = Annotated[str, typer.Option(metavar="KEY", help="Key of the text in each row.")]


OutputFlag = Annotated[Path, typer.Option(metavar="DIR", help="New folder to write.")]
CompressFlag = Annotated[
    Literal["none", "gz", "zst"], typer.Option("--compress", help="How files are compressed.")
]


def _refuse_inside(output: Path, inputs: Sequence[Path]) -> None:
    from alignctl.config.inputs import refuse_inside

    refuse_inside("--output", output, [("input", path) for path in inputs])


def _waiting(is_wanted: bool) -> Callable[[str], None] | None:
    """Who is told what is waited for; None where nobody waits."""
    return console.say if is_wanted else None


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@contextmanager
def _unless_made(folder: Path, recipe: "Callable[[], dict[str, Any]]") -> Iterator[None]:
    """Says where a folder is what the block would write, in the place of refusing it."""
    try:
        yield
    except TakenError:
        from alignctl.corpus.manifest import is_made

        if not is_made(folder, recipe()):
            raise
        console.say(f"{folder} is complete already: nothing is left to do")


def _add_dataset(name: "Name", what: str, sample: str) -> None:
    """Adds the command of a data set.

    Args:
        name: The data set.
        what: What is written of it.
        sample: A path, for the example.
    """

    @app.command(
        name,
        help=what,
        epilog=example(f"alignctl prepare {name} {sample} --output data/{name}"),
    )
    def prepare(
        inputs: Annotated[
            list[str],
            typer.Argument(
                metavar="PATH...",
                help="Files or folders as downloaded, or a name on the Hugging Face hub.",
                show_default=False,
            ),
        ],
        output: OutputFlag,
        dev_fraction: Annotated[
            float,
            typer.Option(
                min=0.0, max=0.9, help="Share held out, where the download has no test files."
            ),
        ] = 0.05,
        license: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Licence; default: what the download's card says."),
        ] = None,
        wait: WaitFlag = False,
    ) -> None:
        from alignctl.reporting.preview import visible
        from alignctl.sources.download import locate
        from alignctl.sources.formats import FORMATS
        from alignctl.sources.preparation import Options, recipe
        from alignctl.sources.preparation import prepare as run

        paths = tuple(locate(given, FORMATS[name].hub) for given in inputs)
        _refuse_inside(output, paths)
        options = Options(name, paths, output, dev_fraction, license)
        with _unless_made(output, lambda: recipe(options)):
            outcome = run(options, _waiting(wait))
            for kind, row in outcome.preview.items():
                text = visible(json.dumps(row, ensure_ascii=False))
                console.emit(f"{kind}/train.jsonl: {shorten(text, 400, placeholder=' ...')}")
            console.say(f"{output}: {outcome.describe()}")
            console.say(f"license: {outcome.license or 'unknown; name it with --license'}")


_add_dataset(
    "hh",
    "Turn Anthropic's HH preferences into rows for sft, reward, dpo, rlhf and online-dpo.",
    "downloads/hh-rlhf/harmless-base",
)
_add_dataset("gsm8k", "Turn GSM8K into rows for sft and grpo.", "downloads/gsm8k")
_add_dataset("math", "Turn Hendrycks' MATH into rows for sft and grpo.", "downloads/MATH")
_add_dataset(
    "alpaca", "Turn Alpaca's instructions into rows for sft.", "downloads/alpaca_data.json"
)
_add_dataset("sharegpt", "Turn ShareGPT's conversations into rows for sft.", "downloads/sg.json")


@app.command(
    "clean",
    epilog=example(
        "alignctl prepare clean raw/ --output data/clean --languages zh,en --min-characters 200",
        "alignctl prepare clean wudao/ --output data/clean --policy pai --compress zst",
    ),
)
def clean(
    inputs: InputsArgument,
    output: OutputFlag,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of the text; default: text, content or output."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="keep|pai|CLASS",
            help="Characters that stay. keep: all scripts, punctuation and line breaks; pai: the "
            "list of PAI-Megatron-Patch; or a class such as '[0-9a-zA-Z .,]'.",
        ),
    ] = "keep",
    keep_urls: Annotated[bool, typer.Option("--keep-urls", help="Leave links in.")] = False,
    keep_white_space: Annotated[
        bool, typer.Option("--keep-white-space", help="Leave spaces and blank lines as they are.")
    ] = False,
    mask_pii: Annotated[
        bool,
        typer.Option(
            "--mask-pii", help="Replace addresses and telephone, card and identity numbers."
        ),
    ] = False,
    txt: Annotated[
        Literal["file", "line"],
        typer.Option(help="What a document of a .txt file is."),
    ] = "file",
    languages: Annotated[
        str | None, typer.Option(metavar="CODES", help="Languages that stay, as zh,en.")
    ] = None,
    min_characters: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="N", help="Fewest characters.")
    ] = 1,
    max_characters: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="N", help="Most characters; default: any number."),
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Leave equal and similar documents in.")
    ] = False,
    similarity: Annotated[
        float,
        typer.Option(
            min=0.3,
            max=1.0,
            metavar="X",
            help="Share of common five-word runs from which on documents are duplicates.",
        ),
    ] = 0.8,
    compress: CompressFlag = "none",
    workers: WorkersFlag = None,
    wait: WaitFlag = False,
) -> None:
    """Turn raw text into one file of clean documents, and say what was left out.

    Writes train.jsonl, manifest.json and, for lines that cannot be read, rejected.jsonl.
    """
    from alignctl.corpus.blocks import find_texts, total_bytes
    from alignctl.corpus.characters import Cleaner, Rules
    from alignctl.corpus.cleaning import Options, recipe
    from alignctl.corpus.cleaning import clean as run
    from alignctl.corpus.languages import check_languages
    from alignctl.corpus.pool import available_cores
    from alignctl.reporting.corpus_progress import CorpusProgress

    codes = tuple(code.strip() for code in (languages or "").split(",") if code.strip())
    if codes:
        check_languages(codes)
    rules = Rules(policy, not keep_urls, mask_pii, not keep_white_space)
    Cleaner(rules)  # refuses a policy that is none
    _refuse_inside(output, inputs)
    files = tuple(find_texts(inputs))
    options = Options(
        files=files,
        folder=output,
        key=key,
        rules=rules,
        txt=txt,
        languages=codes,
        min_characters=min_characters,
        max_characters=max_characters,
        exact_duplicates=not keep_duplicates,
        near_duplicates=None if keep_duplicates or similarity == 1.0 else similarity,
        compression=compress,
        workers=workers or available_cores(),
    )
    with _unless_made(output, lambda: recipe(options)):
        outcome = run(options, CorpusProgress("cleaning", total_bytes(files)), _waiting(wait))
        for message in outcome.rejected:
            console.say(f"rejected: {message}")
        console.say(f"{output}: {outcome.describe()}")


@app.command(
    "shard",
    epilog=example(
        "alignctl prepare shard data/clean --output data/shards --shuffle --lines 100000",
        "alignctl prepare shard a.jsonl b.jsonl.gz --output data/shards --bytes 500MB",
    ),
)
def shard(
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
    """Merge rows, shuffle them, and cut them into files of about the same size."""
    from alignctl.config.convert import size_in_bytes
    from alignctl.corpus.blocks import find_texts, total_bytes
    from alignctl.corpus.shards import Options, recipe
    from alignctl.corpus.shards import shard as run
    from alignctl.reporting.corpus_progress import CorpusProgress

    _refuse_inside(output, inputs)
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
    with _unless_made(output, lambda: recipe(options)):
        shards = run(options, CorpusProgress("sharding", total_bytes(files)), _waiting(wait))
        rows, written = sum(s.lines for s in shards), sum(s.record.bytes for s in shards)
        many = f"{len(shards):,} {'file' if len(shards) == 1 else 'files'}"
        console.say(f"{output}: {rows:,} rows in {many}, {written / 1e6:.1f} MB")


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
    wait: WaitFlag = False,
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

    _refuse_inside(output, inputs)
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

    manifest = run(
        options,
        note,
        resume,
        _waiting(wait),
    )
    if last == Counts():
        console.say(f"{options.prefix} is complete already: nothing is left to do")
        return
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
    samples: Annotated[
        int, typer.Option(min=0, max=MOST, metavar="N", help="Documents to show.")
    ] = 3,
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


@app.command(
    "check",
    epilog=example(
        "alignctl prepare check sft data/hh/sft --preset llama2-7b --tokenizer models/llama2-7b",
        "alignctl prepare check grpo data/gsm8k/math --preset llama2-7b "
        "--tokenizer models/llama2-7b data.max_prompt_length=256",
    ),
)
def check(
    stage: Annotated[
        RowsStage,
        typer.Argument(metavar="STAGE", help="Stage that will read the rows.", show_default=False),
    ],
    data: Annotated[Path, typer.Argument(metavar="PATH", help="File or folder of rows.")],
    preset: PresetFlag,
    tokenizer: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with the tokenizer of the model.")
    ],
    overrides: OverridesArgument = None,
    validation_data: ValidationDataFlag = None,
    samples: Annotated[int, typer.Option(min=0, max=MOST, metavar="N", help="Rows to show.")] = 1,
) -> None:
    """Say what a stage would do with rows: kept, cut, dropped and why, and one as it is learned.

    It is the stage's own preparation; nothing is kept, no model is opened, no GPU is needed.
    """
    from alignctl.config.load import STAGES, resolve, section_of
    from alignctl.stages import check as program

    flags = {
        "data.train": data,
        "data.validation": validation_data,
        "tokenizer": tokenizer,
        "output": Path("runs"),
    }
    config = resolve(STAGES[section_of(stage)], preset, flags, overrides or [])
    program.run(config, samples)
