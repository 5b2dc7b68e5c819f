"""What a run of `pretrain` reads: its datasets checked, and the order of its sequences computed."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignctl import atomic, console
from alignctl.config.pretrain import PretrainConfig
from alignctl.corpus.datasets import Indexed, find
from alignctl.corpus.manifest import TokenizerIdentity, check_tokenizer
from alignctl.corpus.samples import (
    Part,
    Recipe,
    longest_continuation,
    read_recipe,
    tokens_of,
    write,
)
from alignctl.data.store import explain_errors
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from alignctl.reporting.progress.bytes import BytesProgress

FORMAT = 1
"""Part of the folder's name; raised when the same datasets would give other sequences."""
_LOOKED_AT = 1000
"""Documents of which the last token is looked at."""
_SHOWN = 3
"""Datasets that a message names."""


@dataclass(frozen=True)
class Share:
    """The datasets that one path means, in a blend.

    Attributes:
        path: As the user gave it.
        weight: Its weight; None where everything is weighed by its size.
        datasets: One, or those of a folder.
    """

    path: Path
    weight: float | None
    datasets: list[Indexed]


def prepare(config: PretrainConfig, tokenizer: Tokenizer, out_dir: Path) -> Path:
    """Check the datasets of a run and compute its sequences, unless that was done before.

    Args:
        config: The run.
        tokenizer: The tokenizer of the model.
        out_dir: Parent of the prepared folders.

    Returns:
        The folder, for `PretrainData.open`; its name is a hash of all that decides the sequences.

    Raises:
        UserError: A dataset is missing, damaged or of another tokenizer, or there is nothing to
            train on or to validate with.
        RunError: When the disk is full or cannot be written.
    """
    train = _shares(config)
    held_out = find(config.data.validation) if config.data.validation else []
    datasets = [*_datasets(train), *held_out]
    _check(datasets, config, tokenizer)
    recipe = _recipe(config, tokenizer, train, held_out)
    _check_ids(datasets, config.architecture.vocab_size)
    _describe(recipe, train, held_out, config.tokens_per_step)
    key = _key(recipe, datasets)
    folder, partial = out_dir / key, out_dir / f".{key}.partial"
    if folder.is_dir():
        return folder
    with explain_errors(out_dir), atomic.fill_folder(partial, folder):
        write(recipe, partial)
    return folder


def _key(recipe: Recipe, datasets: Sequence[Indexed]) -> str:
    """Hash all that decides the sequences."""
    everything = {
        "format": FORMAT,
        "recipe": recipe.model_dump(),
        "datasets": [dataset.fingerprint() for dataset in datasets],
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]


def check_longer(config: PretrainConfig, before: Path) -> None:
    """Check that a run that is made longer would have read the same sequences so far.

    Args:
        config: The longer run.
        before: What was prepared for it as it was.

    Raises:
        UserError: They would be others.
    """
    recipe, per_step = read_recipe(before), config.batch.global_batch_size
    steps = config.total_steps(recipe.epoch_samples)
    most = longest_continuation(recipe, steps * per_step) // per_step
    if most == steps:
        return
    done = recipe.num_samples // per_step
    hint = f"start a new run from it: --load {config.output} --output NEW"
    if most > done:
        hint += f"; or make it longer by fewer steps: {most} in all read the same passes"
    raise UserError(
        f"{config.output}: this run cannot be made longer from {done} steps to {steps}: Megatron "
        "shuffles the documents of all passes over the data together, and with more passes the "
        "sequences that it has read already would be others",
        hint,
    )


def goes_on(before: Path, after: Path) -> bool:
    """Tell whether prepared folders are of the same datasets and settings but for the length."""
    if before.name == after.name or not before.is_dir():
        return before.name == after.name
    old, new = read_recipe(before), read_recipe(after)
    datasets = [Indexed.open(Path(part.prefix)) for part in (*old.train, *old.validation)]
    is_same = old == new.model_copy(update={"num_samples": old.num_samples})
    return is_same and before.name == _key(old, datasets)


def _shares(config: PretrainConfig) -> list[Share]:
    """Find the datasets to train on, each of them once."""
    if config.data.blend is None:
        assert config.data.train is not None
        return [Share(config.data.train, None, find(config.data.train))]
    shares = [Share(path, weight, find(path)) for path, weight in config.data.blend.items()]
    seen: dict[Path, Path] = {}
    for share in shares:
        for dataset in share.datasets:
            place = dataset.prefix.resolve()
            if place in seen:
                raise UserError(
                    f"data.blend: {dataset.prefix} is in {share.path} and in {seen[place]}",
                    "give each dataset one weight",
                )
            seen[place] = share.path
    return shares


def _check(datasets: Sequence[Indexed], config: PretrainConfig, tokenizer: Tokenizer) -> None:
    """Check that the token ids are the tokenizer's, and, if needed, that documents end with EOS."""
    identity = TokenizerIdentity.of(tokenizer)
    for dataset in datasets:
        if dataset.manifest is not None:
            check_tokenizer(dataset.prefix, dataset.manifest, identity)
    if foreign := [str(each.prefix) for each in datasets if each.manifest is None]:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        console.say(
            f"data: no .json beside {', '.join(foreign[:_SHOWN])}{more} says whose token ids they "
            f"are: they are taken for those of {identity.name}"
        )
    if not config.data.cross_document_attention:
        for dataset in datasets:
            _check_ends(dataset, tokenizer.eos_id)


def _check_ids(datasets: Sequence[Indexed], vocab_size: int) -> None:
    """Check that the model has a row for each token id.

    For datasets without a manifest every token is read, with a progress bar.
    """
    unknown = [dataset for dataset in datasets if dataset.manifest is None]
    for dataset in datasets:
        if dataset.manifest is not None:
            dataset.check_ids(vocab_size)
    if unknown:
        with BytesProgress("reading token ids", sum(each.num_bytes for each in unknown)) as bar:
            for dataset in unknown:
                dataset.check_ids(vocab_size, bar.advance)


def _check_ends(dataset: Indexed, eod: int) -> None:
    """Check that documents can be told apart by the token that ends them."""
    ends = dataset.last_tokens(_LOOKED_AT)
    if without := int((ends != eod).sum()):
        raise UserError(
            f"{dataset.prefix}: {without} of its first {len(ends)} documents do not end with token "
            f"{eod}, so they cannot be told apart, as data.cross_document_attention=false wants",
            "write it again with alignctl prepare tokenize --append-eod, or leave "
            "data.cross_document_attention at true",
        )


def _recipe(
    config: PretrainConfig, tokenizer: Tokenizer, train: list[Share], held_out: list[Indexed]
) -> Recipe:
    split = "1,0,0" if held_out else config.data.split
    parts = [part for share in train for part in _parts(share, split)]
    datasets = _datasets(train)
    if not held_out:
        _check_held_out(config.data.name, datasets, split)
    elif not any(each.tokens > 1 for each in held_out):
        raise UserError(f"{config.data.validation}: nothing to validate with: it has no two tokens")
    tokens = sum(tokens_of(dataset, split, "train") for dataset in datasets)
    epoch = max(1, (tokens - 1) // config.batch.seq_length)
    return Recipe(
        train=tuple(parts),
        validation=tuple(Part(prefix=str(each.prefix), weight=each.tokens) for each in held_out),
        split=split,
        seq_length=config.batch.seq_length,
        seed=config.train.seed,
        num_samples=config.total_steps(epoch) * config.batch.global_batch_size,
        epoch_samples=epoch,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eos_id,
        cross_document_attention=config.data.cross_document_attention,
    )


def _datasets(shares: Sequence[Share]) -> list[Indexed]:
    return [dataset for share in shares for dataset in share.datasets]


def _parts(share: Share, split: str) -> list[Part]:
    """List the datasets of one path with their weights, by size within a folder.

    Raises:
        UserError: The split leaves none of their documents to train on.
    """
    tokens = [tokens_of(each, split, "train") for each in share.datasets]
    if not any(each > 1 for each in tokens):
        raise UserError(
            f"{share.path}: nothing to train on: data.split {split} of "
            f"{_documents(share.datasets)} leaves none",
            "give more text, or hold out less: data.split=100,0,0",
        )
    scale = 1.0 if share.weight is None else share.weight / math.fsum(tokens)
    return [
        Part(prefix=str(dataset.prefix), weight=scale * count)
        for dataset, count in zip(share.datasets, tokens, strict=True)
        if count > 1
    ]


def _check_held_out(where: str, datasets: Sequence[Indexed], split: str) -> None:
    is_wanted = float(split.split(",")[1]) > 0
    if is_wanted and not any(tokens_of(each, split, "valid") > 1 for each in datasets):
        raise UserError(
            f"{where}: nothing is held out: data.split {split} of {_documents(datasets)} leaves "
            "none for validation",
            "hold out more (data.split=90,10,0) or nothing (data.split=100,0,0), or give "
            "--validation-data",
        )


def _documents(datasets: Sequence[Indexed]) -> str:
    count = sum(len(each.lengths) for each in datasets)
    where = f" in {len(datasets)} datasets" if len(datasets) > 1 else ""
    return f"{count:,} {'document' if count == 1 else 'documents'}{where}"


def _describe(
    recipe: Recipe, train: Sequence[Share], held_out: Sequence[Indexed], per_step: int
) -> None:
    """Say what will be read, and how often."""
    datasets = _datasets(train)
    tokens = {each.prefix: tokens_of(each, recipe.split, "train") for each in datasets}
    validated = (
        sum(each.tokens for each in held_out)
        if held_out
        else sum(tokens_of(each, recipe.split, "valid") for each in datasets)
    )
    taken = recipe.num_samples * recipe.seq_length
    total = sum(tokens.values())
    console.say(
        f"data: {_documents(datasets)}; {total:,} tokens to train on, {validated:,} held out; "
        f"the run takes {taken:,} in steps of {per_step:,}, {taken / total:.2f} passes"
    )
    weights = math.fsum(part.weight for part in recipe.train)
    for share in train if len(train) > 1 else ():
        own = {str(each.prefix) for each in share.datasets}
        part = math.fsum(each.weight for each in recipe.train if each.prefix in own) / weights
        passes = part * taken / sum(tokens[each.prefix] for each in share.datasets)
        console.say(f"  {share.path}: {100 * part:.1f} % of the sequences, {passes:.2f} passes")
