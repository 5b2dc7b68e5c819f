"""Rows of preferences streamed through selection, tokenisation and truncation into groups."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.config.data import Select
from alignctl.data.batch import Document, count_computed, with_every_token_an_input
from alignctl.data.documents import DocumentWriter, Recipe, Unread, ahead, batches, text_hashes
from alignctl.data.rows.files import Row
from alignctl.data.rows.preference_schemas import Comparison, preference_schema_of
from alignctl.data.rows.schemas import Conversation, Rendered
from alignctl.data.store import ArrayWriter
from alignctl.data.text.masks import Encoded, encode, share_prompt, truncate_answers

DROPPED = {
    "single": "fewer than two answers that say something",
    "other_prompt": "answers to different prompts",
    "identical": "the same answer twice",
    "tied": "no answer above another",
    "too_long": "too long",
}
"""Why a row is left out, and how that is told. The first reason that applies counts."""


@dataclass(frozen=True, eq=False)
class PreferenceRecipe:
    """How a row becomes a group of documents.

    Attributes:
        document: How each answer becomes a document; its window counts all tokens.
        max_response: Most answers taken of a row, or None for all.
        select: Which ones: the first, those with the highest scores, or some that a hash of their
            text picks, which are always the same ones.
    """

    document: Recipe
    max_response: int | None
    select: Select


@dataclass(frozen=True, eq=False)
class Group:
    """The answers to one prompt, each after that prompt, with their scores.

    There are at least two, all different, and not all scores are equal.
    """

    prompt: str
    answers: list[Encoded]
    scores: list[float]

    @property
    def num_pairs(self) -> int:
        """Pairs of a better and a worse answer."""
        return sum(better > worse for better in self.scores for worse in self.scores)


@dataclass(eq=False)
class PreferenceTally:
    """What became of the rows of one source, and the small arrays about its groups.

    Attributes:
        lengths: Tokens of each document, in parts.
        targets: Tokens of each document's answer, in parts.
        sizes: Documents of each group, in parts.
        pairs: Pairs of each group, in parts.
        shared: Tokens of each group that its documents have in common beyond the first of them, in
            parts.
        prompt_hashes: Of each group's prompt, in parts: equal prompts are held out together.
        rows: Rows read.
        unread: Keys of rows that nothing reads, by file.
        truncated: Groups that were cut.
        parted: Answers that change the tokens of their prompts (see `masks`).
        without_eos: Answers that do not end with EOS.
        dropped: Rows left out, by the keys of `DROPPED`.
    """

    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    targets: list[NDArray[np.int64]] = field(default_factory=list)
    sizes: list[NDArray[np.int64]] = field(default_factory=list)
    pairs: list[NDArray[np.int64]] = field(default_factory=list)
    shared: list[NDArray[np.int64]] = field(default_factory=list)
    prompt_hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    rows: int = 0
    unread: Unread = field(default_factory=Unread)
    truncated: int = 0
    parted: int = 0
    without_eos: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def groups(self) -> int:
        """Groups kept."""
        return sum(len(part) for part in self.sizes)

    def in_words(self) -> str:
        """Say the counts that explain why nothing was kept."""
        if not self.rows:
            return "there is no row in it"
        reasons = [f"{self.dropped[key]} dropped: {DROPPED[key]}" for key in sorted(self.dropped)]
        return ", ".join([f"{self.rows} rows read", *reasons])


def stream(
    files: Sequence[Path],
    recipe: PreferenceRecipe,
    writer: DocumentWriter,
    scores: ArrayWriter,
    on_rows: Callable[[int], None],
) -> PreferenceTally:
    """Write the groups of all rows of some files, the documents of a group one after another.

    Args:
        files: Data files; the first row of the first one decides the schema.
        recipe: How a row becomes a group.
        writer: Where documents go.
        scores: Where the score of each document goes.
        on_rows: Called with the number of rows of each batch that is done.

    Returns:
        The counts.
    """
    tally = PreferenceTally()
    selected = (
        (len(rows), _select(rows, comparisons, recipe, tally))
        for rows, comparisons in batches(files, preference_schema_of, tally.unread)
    )
    for (num_rows, chosen), written in ahead(selected, lambda each: _start(each[1], recipe)):
        tally.rows += num_rows
        kept = _groups(chosen, [text[-1].keep_last_turn() for text in written], recipe, tally)
        if kept:
            _note(tally, [group for _, group in kept], recipe.document.tokenizer.eos_id)
            writer.append(
                [row for row, group in kept for _ in group.answers],
                [answer for _, group in kept for answer in group.answers],
            )
            scores.append(np.asarray([score for _, group in kept for score in group.scores]))
        on_rows(num_rows)
    return tally


_Selected = list[tuple[Row, Comparison]]


def _select(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    recipe: PreferenceRecipe,
    tally: PreferenceTally,
) -> _Selected:
    """Select the rows that are not left out, with the answers that are taken."""
    selected = [
        (row, comparison)
        for row, whole in zip(rows, comparisons, strict=True)
        if (comparison := _selected(whole, recipe, tally)) is not None
    ]
    render = recipe.document.render
    for row, comparison in selected:
        keys = {key for answer in comparison.answers for key in render.unread(answer)}
        tally.unread.add(row, sorted(keys))
    return selected


def _start(selected: _Selected, recipe: PreferenceRecipe) -> Callable[[], list[list[Rendered]]]:
    answers = [answer for _, comparison in selected for answer in comparison.answers]
    return recipe.document.render.start(answers, whole=True)


def _groups(
    selected: _Selected, texts: list[Rendered], recipe: PreferenceRecipe, tally: PreferenceTally
) -> list[tuple[Row, Group]]:
    """Tokenise the answers of some rows together; return the groups, each with its row."""
    encoded = iter(encode(texts, recipe.document.tokenizer))
    kept = []
    for row, comparison in selected:
        group = _fitted(comparison, [next(encoded) for _ in comparison.answers], recipe, tally)
        if group is not None:
            kept.append((row, group))
    return kept


def _selected(
    comparison: Comparison, recipe: PreferenceRecipe, tally: PreferenceTally
) -> Comparison | None:
    """Select the answers that say something, and of those as many as are wanted."""
    pairs = [
        (answer, score)
        for answer, score in zip(comparison.answers, comparison.scores, strict=True)
        if _says_something(answer)
    ]
    if recipe.max_response is not None and len(pairs) > recipe.max_response:
        order = _by_preference(pairs, recipe.select)[: recipe.max_response]
        pairs = [pairs[place] for place in sorted(order)]
    if len(pairs) < 2:
        tally.dropped["single"] += 1
        return None
    if any(answer.messages[:-1] != pairs[0][0].messages[:-1] for answer, _ in pairs):
        tally.dropped["other_prompt"] += 1
        return None
    answers, scores = zip(*pairs, strict=True)
    return Comparison(comparison.where, answers, scores)


def _says_something(answer: Conversation) -> bool:
    last = answer.messages[-1] if answer.messages else None
    if last is None or last.role != "assistant" or not last.is_learned:
        return False
    return bool(last.content.strip() or last.extra)


def _by_preference(pairs: Sequence[tuple[Conversation, float]], select: Select) -> list[int]:
    """Sort the places of the answers: those that are to be taken come first."""
    places = range(len(pairs))
    if select == "firstk":
        return list(places)
    if select == "topk":
        return sorted(places, key=lambda place: (-pairs[place][1], place))
    texts = ["\0".join(message.content for message in answer.messages) for answer, _ in pairs]
    order: list[int] = np.argsort(text_hashes(texts), kind="stable").tolist()
    return order


def _fitted(
    comparison: Comparison,
    encoded: Sequence[Encoded],
    recipe: PreferenceRecipe,
    tally: PreferenceTally,
) -> Group | None:
    """Cut a group's documents to the window and leave out repeated answers; None if it goes."""
    settings = recipe.document
    if not all(len(document.tokens) for document in encoded):  # a template wrote no answer
        tally.dropped["single"] += 1
        return None
    whole, prompt = share_prompt(encoded)
    bos_id = settings.tokenizer.bos_id
    documents = truncate_answers(whole, prompt, settings.window, settings.truncation, bos_id)
    if not documents:
        tally.dropped["too_long"] += 1
        return None
    different: dict[bytes, tuple[Encoded, float]] = {}
    for document, score in zip(documents, comparison.scores, strict=True):
        different.setdefault(document.tokens.tobytes(), (document, score))
    if len(different) < 2:
        tally.dropped["identical"] += 1
        return None
    answers, scores = zip(*different.values(), strict=True)
    if min(scores) == max(scores):
        tally.dropped["tied"] += 1
        return None
    tally.truncated += any(
        len(cut.tokens) < len(full.tokens) for cut, full in zip(documents, whole, strict=True)
    )
    tally.parted += sum(document.is_parted for document in documents)
    text = "\0".join(message.content for message in comparison.answers[0].messages[:-1])
    return Group(text, list(answers), list(scores))


def _note(tally: PreferenceTally, groups: Sequence[Group], eos_id: int) -> None:
    documents = [answer for group in groups for answer in group.answers]
    tally.lengths.append(np.asarray([len(document.tokens) for document in documents]))
    tally.targets.append(np.asarray([document.supervised[1:].sum() for document in documents]))
    tally.sizes.append(np.asarray([len(group.answers) for group in groups]))
    tally.pairs.append(np.asarray([group.num_pairs for group in groups]))
    tally.shared.append(np.asarray([_shared_tokens(group) for group in groups]))
    tally.prompt_hashes.append(text_hashes([group.prompt for group in groups]))
    tally.without_eos += sum(int(document.tokens[-1]) != eos_id for document in documents)


def _shared_tokens(group: Group) -> int:
    answers = [
        with_every_token_an_input(Document(answer.tokens, answer.supervised, 0))
        for answer in group.answers
    ]
    return sum(len(answer.tokens) for answer in group.answers) - count_computed(answers)
