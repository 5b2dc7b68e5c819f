"""Preparation of prompts: files of rows to a folder of memory-mapped token ids and answers.

For rewards of one's own the rows are kept too, whole: `rows.jsonl`, and where each starts in it.
"""

import difflib
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.config.on_policy import Prompts
from alignctl.data.documents import Progress, Unread, ahead, batches, text_hashes
from alignctl.data.packing import starts
from alignctl.data.preparation import Sources, divide, prepare_folder
from alignctl.data.prompt_store import PromptSummary, encode_row, open_rows
from alignctl.data.rows.files import Row
from alignctl.data.rows.prompt_schemas import Question, prompt_schema_of
from alignctl.data.rows.schemas import Rendered
from alignctl.data.store import ArrayWriter, write_array
from alignctl.data.text.masks import cut_prompt, encode_prompts
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

FORMAT = 2
"""Part of the content key; raised when the same rows would give other arrays."""


@dataclass(frozen=True, eq=False)
class _Recipe:
    """How a row becomes a prompt, and the rules that it may name."""

    render: Renderer
    tokenizer: Tokenizer
    settings: Prompts
    eval_funcs: Collection[str]
    keeps_rows: bool


@dataclass(eq=False)
class _Tally:
    """What became of the rows of one source, and what is kept of its prompts besides tokens."""

    lengths: list[int] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    eval_funcs: list[str | None] = field(default_factory=list)
    text_hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    row_bytes: list[int] = field(default_factory=list)
    rows: int = 0
    unread: Unread = field(default_factory=Unread)
    dropped: int = 0
    cut: int = 0


def prepare(
    settings: Prompts,
    tokenizer: Tokenizer,
    out_dir: Path,
    eval_funcs: Collection[str],
    on_progress: Progress | None = None,
    *,
    keeps_rows: bool = False,
) -> Path:
    """Write prompts as the tokenizer's model reads them, unless that was done before.

    A prompt is tokenised by itself, as a server would that is given its text. Held out for
    validation is what `prepare_folder` says; a share of the training rows is chosen by a hash of
    their prompts, so that a prompt never is on both sides.

    Args:
        settings: The run's data section.
        tokenizer: The tokenizer of the policy.
        out_dir: Parent of the prepared folders.
        eval_funcs: The rules that rows may name.
        on_progress: Told about every batch of rows.
        keeps_rows: Whether the rows themselves are wanted later.

    Returns:
        The folder, for `PromptData.open`.

    Raises:
        UserError: For whatever is wrong with files, rows or settings.
        RunError: When the disk is full or cannot be written.
    """

    def write(folder: Path, sources: Sources, on_rows: Callable[[int], None]) -> None:
        render = Renderer(settings.template, tokenizer)
        recipe = _Recipe(render, tokenizer, settings, eval_funcs, keeps_rows)
        tallies = _stream_sources(sources, recipe, folder, on_rows)
        summary = _write_rest(settings, tallies, sources, folder)
        (folder / "summary.json").write_text(summary.to_json(), encoding="utf-8")

    state = {
        "kind": "prompts",
        "format": FORMAT,
        "eval_funcs": sorted(eval_funcs),
        "long_prompts": settings.long_prompts,
        "max_prompt_length": settings.max_prompt_length,
        "tokenizer": tokenizer.fingerprint,
    }
    if keeps_rows:  # others keep the name that they have always had
        state["rows"] = True
    return prepare_folder(settings, state, out_dir, write, on_progress)


def _stream_sources(
    sources: Sources, recipe: _Recipe, folder: Path, on_rows: Callable[[int], None]
) -> list[_Tally]:
    """Write the prompts of the training files, source by source, then of the validation files."""
    number_of = {file: number for number, file in enumerate(sources.files)}
    tallies = [_Tally() for _ in sources.groups]
    with ExitStack() as stack:
        tokens = ArrayWriter(folder / "tokens.npy", np.int32)
        file_numbers = ArrayWriter(folder / "file_numbers.npy", np.int32)
        lines = ArrayWriter(folder / "lines.npy", np.int64)
        for array in (tokens, file_numbers, lines):
            stack.callback(array.close)
        rows_file = stack.enter_context(open_rows(folder)) if recipe.keeps_rows else None
        for files, tally in zip(sources.groups, tallies, strict=True):
            batch = batches(files, prompt_schema_of, tally.unread)
            for (rows, questions), texts in ahead(batch, partial(_start, recipe.render)):
                kept = _kept(rows, questions, texts, recipe, tally)
                if kept:
                    tokens.append(np.concatenate([prompt for _, prompt, _ in kept]))
                    file_numbers.append(np.asarray([number_of[row.file] for row, _, _ in kept]))
                    lines.append(np.asarray([row.line for row, _, _ in kept]))
                if rows_file is not None:
                    tally.row_bytes += [
                        rows_file.write(encode_row(asked, row.record)) for row, _, asked in kept
                    ]
                on_rows(len(rows))
            if not tally.lengths:
                raise _explain_nothing_left(files, tally, recipe.settings.max_prompt_length)
    return tallies


def _explain_nothing_left(files: Sequence[Path], tally: _Tally, limit: int) -> UserError:
    names = ", ".join(str(file) for file in files)
    if not tally.rows:
        return UserError(f"{names}: no prompts: there is no row in it")
    return UserError(
        f"{names}: no prompts: all {tally.rows} rows are longer than data.max_prompt_length, "
        f"{limit} tokens",
        "raise it, or cut prompts with data.long_prompts=cut",
    )


def _kept(
    rows: Sequence[Row],
    questions: Sequence[Question],
    texts: Sequence[Rendered],
    recipe: _Recipe,
    tally: _Tally,
) -> list[tuple[Row, NDArray[np.int32], str]]:
    """Select the rows that are not left out, each with its prompt: tokens, and what is asked."""
    settings, tokenizer = recipe.settings, recipe.tokenizer
    kept, kept_texts = [], []
    encoded = encode_prompts(texts, tokenizer)
    for row, question, text, tokens in zip(rows, questions, texts, encoded, strict=True):
        tally.unread.add(row, recipe.render.unread(question.conversation))
        _check_rule(row, question.eval_func, recipe.eval_funcs)
        is_long = len(tokens) > settings.max_prompt_length
        if is_long and settings.long_prompts == "drop":
            tally.dropped += 1
            continue
        tally.cut += is_long
        prompt = cut_prompt(tokens, settings.max_prompt_length, tokenizer.bos_id)
        kept.append((row, prompt, question.asked))
        kept_texts.append(text.text[: text.spans[-1][0]])
        tally.lengths.append(len(prompt))
        tally.answers.append(question.answer)
        tally.eval_funcs.append(question.eval_func)
    tally.rows += len(rows)
    tally.text_hashes.append(text_hashes(kept_texts))
    return kept


def _start(
    render: Renderer, batch: tuple[Sequence[Row], Sequence[Question]]
) -> Callable[[], list[Rendered]]:
    questions = batch[1]
    wait = render.start([question.conversation for question in questions], whole=True)
    return lambda: [_add_turn(*each) for each in zip(questions, wait(), strict=True)]


def render_prompts(questions: Sequence[Question], render: Renderer) -> list[Rendered]:
    """Write questions, each with a last turn in the place of the answer to come.

    Raises:
        UserError: The chat template writes no such turn.
    """
    return _start(render, ((), questions))()


def _add_turn(question: Question, written: Sequence[Rendered]) -> Rendered:
    if not written[-1].spans:
        raise UserError(
            f"{question.conversation.where}: the chat template does not write an assistant's turn",
            "mend the template, or use data.template=hh",
        )
    return written[-1]


def _check_rule(row: Row, name: str | None, known: Collection[str]) -> None:
    if name is None or name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    names = ", ".join(sorted(known))
    raise UserError(
        f"{row.where}: eval_func {name!r} is not a rule that is known",
        f"did you mean {near[0]}? Known: {names}" if near else f"known: {names}",
    )


def _write_rest(
    settings: Prompts, tallies: list[_Tally], sources: Sources, folder: Path
) -> PromptSummary:
    """Write all that is known only after all rows were read; return the summary."""
    lengths = np.asarray([each for tally in tallies for each in tally.lengths], np.int64)
    write_array(folder / "offsets.npy", starts(lengths))
    row_bytes = [each for tally in tallies for each in tally.row_bytes]
    if row_bytes:
        write_array(folder / "row_starts.npy", starts(np.asarray(row_bytes, np.int64)))
    answers = [each for tally in tallies for each in tally.answers]
    eval_funcs = [each for tally in tallies for each in tally.eval_funcs]
    text = json.dumps({"answers": answers, "eval_funcs": eval_funcs})
    (folder / "answers.json").write_text(text, encoding="utf-8")
    parts, held_out = divide(
        sources,
        [len(tally.lengths) for tally in tallies],
        np.concatenate([part for tally in tallies for part in tally.text_hashes]),
        settings.validation_fraction,
    )
    train = np.concatenate(parts)
    write_array(folder / "train.npy", train)
    write_array(folder / "validation.npy", held_out)
    unread = {file: keys for tally in tallies for file, keys in tally.unread.counts().items()}
    return PromptSummary(
        rows=sum(tally.rows for tally in tallies),
        dropped=sum(tally.dropped for tally in tallies),
        cut=sum(tally.cut for tally in tallies),
        with_answer=sum(answer is not None for answer in answers),
        max_prompt_length=settings.max_prompt_length,
        # Of rows that are kept, a reward may read any key.
        unread={} if row_bytes else unread,
        eval_funcs=tuple(sorted({name for name in eval_funcs if name is not None})),
        files=sources.names,
        train=len(train),
        train_tokens=int(lengths[train].sum()),
        validation=len(held_out),
        sources=tuple(map(len, parts)) if len(parts) > 1 else (),
    )
