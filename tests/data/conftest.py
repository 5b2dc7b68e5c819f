"""Tokenizers whose every token is known, so that masks can be written down by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from alignctl.data.tokenizer import Tokenizer, load_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


class MakeTokenizer(Protocol):
    """Writes a tokenizer folder and loads it."""

    def __call__(
        self, *, bos: bool = ..., merges: Sequence[tuple[str, str]] = ..., **settings: object
    ) -> Tokenizer: ...


def save_tokenizer(folder: Path, backend: Any, settings: dict[str, object]) -> None:
    """The two files of a tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    text = json.dumps(names | settings)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> MakeTokenizer:
    """Byte-level: one token per byte, and one per merge; no pre-tokenisation.

    Ids: <unk> 0, <s> 1, </s> 2, <pad> 3, the bytes from 4 in the order of ByteLevel's alphabet,
    then the merges. The post-processor trims offsets, as GPT-2's and Bloom's do.
    """

    def make(
        *, bos: bool = False, merges: Sequence[tuple[str, str]] = (), **settings: object
    ) -> Tokenizer:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*SPECIAL, *alphabet, *(a + b for a, b in merges)]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        backend = Backend(models.BPE(vocab=vocabulary, merges=list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
        if bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
        backend.add_special_tokens(SPECIAL)
        folder = tmp_path / f"tokenizer-{len(list(tmp_path.iterdir()))}"
        save_tokenizer(folder, backend, settings)
        return load_tokenizer(folder)

    return make


@pytest.fixture
def llama_like(tmp_path: Path) -> Tokenizer:
    """Like Llama 2's: spaces become U+2581, one is put in front, unknown bytes fall back."""
    pieces = ["\u2581", "\u2581Sure", "\u2581Hi", "Human", "Assistant", ":", "!"]
    letters = sorted({letter for piece in pieces for letter in piece})
    merges = []
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *letters]:
        vocabulary.setdefault(token, len(vocabulary))
    for piece in pieces:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocabulary:
                vocabulary[piece[:end]] = len(vocabulary)
                merges.append((piece[: end - 1], piece[end - 1]))
    backend = Backend(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(SPECIAL)
    save_tokenizer(tmp_path / "llama-like", backend, {"add_bos_token": True})
    return load_tokenizer(tmp_path / "llama-like")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines and returns the file."""

    def write(rows: Sequence[object], name: str = "train.jsonl") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write
