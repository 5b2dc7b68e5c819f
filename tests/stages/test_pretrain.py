"""Continued pretraining end to end: a larger vocabulary, what is said, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from alignctl.checkpoints import manifest
from alignctl.corpus.manifest import (
    CorpusManifest,
    TokenizerIdentity,
    file_record,
    name_beside,
    write_manifest,
)
from alignctl.corpus.samples import PretrainData
from alignctl.data.tokenizer import load_tokenizer
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.prepared import prepared_data
from tests import tiny
from tests.e2e.test_resume import rows
from tests.stages.conftest import Alignctl, refused, snapshot

pytestmark = pytest.mark.ci

EXTRA = 3


def describe(prefix: Path, tokenizer: Path, **changes: Any) -> Path:
    """Writes the manifest that `prepare tokenize` would write beside a dataset of the tests."""
    tokens = np.fromfile(name_beside(prefix, ".bin"), "<u2")
    found = CorpusManifest(
        tokenizer=TokenizerIdentity.of(load_tokenizer(tokenizer)),
        bos=None,
        eod=2,
        append_eod=True,
        documents=200,
        tokens=len(tokens),
        max_token_id=int(tokens.max()),
        dtype="uint16",
        files=(file_record(name_beside(prefix, ".bin")), file_record(name_beside(prefix, ".idx"))),
        source=(),
    )
    write_manifest(prefix, found.model_copy(update=changes))
    return prefix


@pytest.fixture(scope="package")
def corpora(workspace: Path) -> Path:
    """In the workspace: corpus (with a manifest), foreign/a and foreign/b (without), larger."""
    describe(tiny.write_corpus(workspace / "corpus"), workspace / "hf")
    tiny.write_corpus(workspace / "foreign/a", [[5, 6, 7, 2], [8, 9, 2]] * 30)
    tiny.write_corpus(workspace / "foreign/b", [[10, 11, 12, 13, 2]] * 30)
    tiny.write_tokenizer(workspace / "larger", num_extra=EXTRA)
    return workspace


def test_a_larger_vocabulary_is_trained_and_comes_back(
    alignctl: Alignctl, corpora: Path, tmp_path: Path
) -> None:
    """New tokens occur in the text, so that their rows move; perplexity falls; transformers agrees
    with what the run has measured."""
    new = [tiny.VOCABULARY + number for number in range(EXTRA)]
    documents = [[*range(start, start + 20), *new, 2] for start in range(4, 204)]
    describe(tiny.write_corpus(tmp_path / "corpus", documents), corpora / "larger")
    flags = ("--preset", "bloom.yaml", "--load", "bloom", "--tokenizer", "larger")
    where = ("--data", tmp_path / "corpus", "--output", tmp_path / "run")
    knobs = ("parallel.tp=2", "parallel.sequence_parallel=true", "train.steps=8")
    outcome = alignctl("pretrain", *flags, *where, *knobs, f"extra_vocab_size={EXTRA}")
    assert outcome.code == 0, outcome.text
    assert f"vocabulary {tiny.VOCABULARY} -> {tiny.VOCABULARY + EXTRA}" in outcome.err
    run = RunFolder(tmp_path / "run")
    first, *_, last = rows(run, "validation")
    assert first["perplexity"] == pytest.approx(np.exp(first["loss"]))
    assert last["perplexity"] < first["perplexity"]
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert manifest.read(checkpoint).model.vocab_size == tiny.VOCABULARY + EXTRA

    outcome = alignctl("convert-mg2hf", "--load", tmp_path / "run", "--save", tmp_path / "hf")
    assert outcome.code == 0, outcome.text
    assert load_tokenizer(tmp_path / "hf").vocab_size == tiny.VOCABULARY + EXTRA
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.vocab_size == tiny.VOCABULARY + EXTRA
    data = PretrainData.open(prepared_data(run))
    assert data.validation is not None
    total, count = 0.0, 0
    for number in range(data.validation.num_sequences):
        batch = data.validation.batch([number])
        with torch.no_grad():
            logits = model(torch.from_numpy(batch.tokens)[None]).logits[0]
        targets = torch.from_numpy(batch.targets)
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    assert last["loss"] == pytest.approx(total / count, rel=1e-4)


def pretrain(*changes: object, data: str = "corpus") -> list[object]:
    where = ("--data", data) if data else ()
    return [
        *("pretrain", "--preset", "tiny.yaml", "--load", "hf", "--output", "new"),
        *where,
        *changes,
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (pretrain(data=""), ["--data is missing: an indexed dataset, or a folder of them"]),
        (pretrain(data="corpu"), ["corpu: no indexed dataset of this name", "folder: corpus"]),
        (pretrain(data="hf"), ["hf: no indexed dataset (NAME.bin and NAME.idx) in this folder"]),
        (
            pretrain("--validation-data", "nowhere"),
            ["nowhere: no indexed dataset of this name"],
        ),
        (
            pretrain("--tokenizer", "larger"),
            ["larger: 3 token ids exceed the model's embedding of 261 rows", "extra_vocab_size=3"],
        ),
        (
            pretrain("--tokenizer", "larger", "extra_vocab_size=3"),
            ["corpus: tokenised with hf (261 tokens), which is not the tokenizer of the model"],
        ),
        (pretrain("data.split=99.9,0.1,0"), ["corpus: nothing is held out", "of 200 documents"]),
        (pretrain("data.split=0.1,99,0"), ["corpus: nothing to train on", "of 200 documents"]),
        (
            pretrain("data.blend={foreign: 1, foreign/a: 1}", data=""),
            ["data.blend: foreign/a is in foreign/a and in foreign"],
        ),
        (
            pretrain("data.blend={foreign: much}", data=""),
            ["data.blend.foreign must be a number; found 'much'"],
        ),
        (pretrain("data.split=98"), ["data.split must be a word; found 98"]),
    ],
)
def test_a_mistake_is_named_and_nothing_is_left_behind(
    alignctl: Alignctl, corpora: Path, command: list[object], words: list[str]
) -> None:
    before = snapshot(corpora)
    said = refused(alignctl(*command))
    for word in words:
        assert word in said
    assert snapshot(corpora) == before


@pytest.mark.parametrize(
    ("documents", "knobs", "words"),
    [
        ([[5, 300, 2]] * 50, (), "token id 300 is beyond the 261 rows of the model's vocabulary"),
        (
            [[5, 6, 7]] * 50,
            ("data.cross_document_attention=false",),
            "50 of its first 50 documents do not end with token 2",
        ),
    ],
)
def test_foreign_tokens_that_do_not_fit_are_found_before_the_start(
    alignctl: Alignctl,
    corpora: Path,
    tmp_path: Path,
    documents: list[list[int]],
    knobs: tuple[str, ...],
    words: str,
) -> None:
    prefix = tiny.write_corpus(tmp_path / "foreign", documents)
    outcome = alignctl(*pretrain(*knobs, data=str(prefix)))
    assert "says whose token ids they are: they are taken for those of hf" in outcome.err
    assert words in refused(outcome)
    assert not (corpora / "new").exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("suffix", "change", "words"),
    [
        (".bin", Path.unlink, "corpus.bin: missing, though corpus.idx is there"),
        (".bin", _cut, "corpus.bin: "),
        (".idx", _cut, "corpus.idx: "),
    ],
)
def test_a_damaged_dataset_is_refused(
    alignctl: Alignctl,
    corpora: Path,
    tmp_path: Path,
    suffix: str,
    change: Callable[[Path], None],
    words: str,
) -> None:
    for each in (".bin", ".idx", ".json"):
        shutil.copy(corpora / f"corpus{each}", tmp_path)
    change(tmp_path / f"corpus{suffix}")
    assert words in refused(alignctl(*pretrain(data=str(tmp_path / "corpus"))))
    assert not (corpora / "new").exists()


@pytest.mark.slow
def test_a_run_is_made_longer_within_its_passes_and_else_refused_untouched(
    alignctl: Alignctl, corpora: Path, tmp_path: Path
) -> None:
    """A finished run of three steps goes on to four; with more passes it would have read others."""
    command = pretrain("--output", tmp_path / "run")
    for steps in (3, 4):
        outcome = alignctl(*command, f"train.steps={steps}")
        assert outcome.code == 0, outcome.text
    run = RunFolder(tmp_path / "run")
    assert [row["step"] for row in rows(run, "train")] == [1, 2, 3, 4]
    before = snapshot(tmp_path / "run")
    said = refused(alignctl(*command, "train.steps=1000"))
    assert "this run cannot be made longer from 4 steps to 1000: Megatron shuffles" in said
    assert f"hint: start a new run from it: --load {run.path} --output NEW; or make it" in said
    most = int(said.partition("by fewer steps: ")[2].split()[0])
    assert 4 < most < 1000
    assert snapshot(tmp_path / "run") == before


def test_a_dry_run_prints_the_configuration(alignctl: Alignctl, corpora: Path) -> None:
    outcome = alignctl(*pretrain("data.blend={foreign: 0.5}", "--dry-run", data=""))
    assert outcome.code == 0, outcome.text
    assert "-m alignctl.stages.pretrain new" in outcome.out
    config = json.loads(outcome.out[outcome.out.index("{") :])
    assert config["data"]["blend"] == {"foreign": 0.5}
