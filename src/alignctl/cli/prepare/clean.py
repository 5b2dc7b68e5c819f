"""Turn raw text into one file of clean documents, and say what was left out.

Writes train.jsonl, manifest.json and, for lines that cannot be read, rejected.jsonl.
"""

from typing import Annotated, Literal

import typer

from alignctl import console
from alignctl.cli.flags import WaitFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.cli.prepare.common import (
    CompressFlag,
    InputsArgument,
    OutputFlag,
    WorkersFlag,
    after_text,
    refuse_inside_inputs,
    unless_made,
    waiting,
)
from alignctl.config.bounds import MOST
from alignctl.corpus.blocks import find_texts, total_bytes
from alignctl.corpus.cleaning.characters import Cleaner, Rules
from alignctl.corpus.cleaning.languages import check_languages
from alignctl.corpus.cleaning.pipeline import Options, recipe
from alignctl.corpus.cleaning.pipeline import clean as run
from alignctl.corpus.pool import available_cores
from alignctl.reporting.progress.corpus import CorpusProgress
from alignctl.reporting.progress.ending import finishing

KeyFlag = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Key of the text; default: text, content or output."),
]
PolicyFlag = Annotated[
    str,
    typer.Option(
        metavar="keep|pai|CLASS",
        help="Characters that stay. keep: all scripts, punctuation and line breaks; pai: the "
        "list of PAI-Megatron-Patch; or a class such as '[0-9a-zA-Z .,]'.",
    ),
]
KeepUrlsFlag = Annotated[bool, typer.Option("--keep-urls", help="Leave links in.")]
KeepWhiteSpaceFlag = Annotated[
    bool, typer.Option("--keep-white-space", help="Leave spaces and blank lines as they are.")
]
MaskPiiFlag = Annotated[
    bool,
    typer.Option("--mask-pii", help="Replace addresses and telephone, card and identity numbers."),
]
TxtFlag = Annotated[
    Literal["file", "line"],
    typer.Option(help="What a document of a .txt file is."),
]
LanguagesFlag = Annotated[
    str | None, typer.Option(metavar="CODES", help="Languages that stay, as zh,en.")
]
MinCharactersFlag = Annotated[
    int, typer.Option(min=1, max=MOST, metavar="N", help="Fewest characters.")
]
MaxCharactersFlag = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, metavar="N", help="Most characters; default: any number."),
]
KeepDuplicatesFlag = Annotated[
    bool, typer.Option("--keep-duplicates", help="Leave equal and similar documents in.")
]
SimilarityFlag = Annotated[
    float,
    typer.Option(
        min=0.3,
        max=1.0,
        metavar="X",
        help="Share of common five-word runs from which on documents are duplicates.",
    ),
]

app = typer.Typer(**PLAIN)


@app.command(
    "clean",
    help=__doc__,
    epilog=example(
        "alignctl prepare clean raw/ --output data/clean --languages zh,en --min-characters 200",
        "alignctl prepare clean wudao/ --output data/clean --policy pai --compress zst",
    ),
)
def _clean(
    inputs: InputsArgument,
    output: OutputFlag,
    key: KeyFlag = None,
    policy: PolicyFlag = "keep",
    keep_urls: KeepUrlsFlag = False,
    keep_white_space: KeepWhiteSpaceFlag = False,
    mask_pii: MaskPiiFlag = False,
    txt: TxtFlag = "file",
    languages: LanguagesFlag = None,
    min_characters: MinCharactersFlag = 1,
    max_characters: MaxCharactersFlag = None,
    keep_duplicates: KeepDuplicatesFlag = False,
    similarity: SimilarityFlag = 0.8,
    compress: CompressFlag = "none",
    workers: WorkersFlag = None,
    wait: WaitFlag = False,
) -> None:
    codes = tuple(code.strip() for code in (languages or "").split(",") if code.strip())
    if codes:
        check_languages(codes)
    rules = Rules(policy, not keep_urls, mask_pii, not keep_white_space)
    Cleaner(rules)  # refuses a policy that is none
    refuse_inside_inputs(output, inputs)
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
    with (
        finishing("prepare clean", "cleaned", output, after_text(output)),
        unless_made(output, lambda: recipe(options)),
    ):
        outcome = run(options, CorpusProgress("cleaning", total_bytes(files)), waiting(wait))
        for message in outcome.rejected:
            console.say(f"rejected: {message}")
        console.say(f"{output}: {outcome.describe()}")
