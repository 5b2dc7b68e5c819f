"""Every family, head, type, format and layout: the way there and back, and from each to each."""

import random
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch

from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.find import find
from alignctl.checkpoints.formats.hf_files import SINGLE
from alignctl.config.sections import Head, Model
from tests.checkpoints.folders import random_weights, write_config, write_hf

pytestmark = pytest.mark.ci

Kind = Literal["llama-mha", "llama-gqa", "bloom"]
Megatron = Literal["mcore", "legacy"]
FORMATS: tuple[Megatron, ...] = ("mcore", "legacy")
KINDS: tuple[Kind, ...] = ("llama-mha", "llama-gqa", "bloom")
HEADS: tuple[Head, ...] = ("lm", "linear", "pooler")
DTYPES = (torch.float32, torch.bfloat16)


class Layout(NamedTuple):
    """A Megatron checkpoint of some format."""

    format: Megatron
    tp: int
    pp: int


LAYOUTS = [Layout(format, tp, pp) for format in FORMATS for tp, pp in product((1, 2, 4), (1, 2, 4))]
MODELS = pytest.mark.parametrize(
    ("kind", "head", "dtype"),
    [
        pytest.param(*each, marks=pytest.mark.slow if "pooler" in each else ())
        for each in product(KINDS, HEADS, DTYPES)
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)


def architecture(kind: Kind) -> Model:
    """Four layers, eight heads, eleven tokens: padded to 16 and 32 rows at TP 4 and more."""
    is_bloom = kind == "bloom"
    return Model(
        family="bloom" if is_bloom else "llama2",
        num_layers=4,
        hidden_size=32,
        num_attention_heads=8,
        num_query_groups=4 if kind == "llama-gqa" else 8,
        ffn_hidden_size=128 if is_bloom else 48,
        vocab_size=11,
        max_position_embeddings=2048 if is_bloom else 64,
        rotary_base=None if is_bloom else 10000.0,
        tie_embeddings=is_bloom,
        vocab_divisor=4,
    )


def original(folder: Path, kind: Kind, head: Head, dtype: torch.dtype) -> Path:
    model = architecture(kind)
    write_hf(folder, model, random_weights(model, dtype, head=head))
    tokens = {"eos_token_id": 2, "pad_token_id": 1}  # right already, so nothing is settled
    name = str(dtype).removeprefix("torch.")
    write_config(folder, model, head=head, dtype=name, **tokens)
    return folder


def written(load: Path, save: Path, layout: Layout | None) -> Path:
    """Converts to a layout, or to Hugging Face."""
    source = find(load, vocab_divisor=4)
    save.mkdir()
    target = Target("hf") if layout is None else Target(layout.format, tp=layout.tp, pp=layout.pp)
    convert(source, save, target)
    return save


def weights(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint but the manifest, by name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "alignctl.json"
    }


@MODELS
def test_hugging_face_to_megatron_and_back_gives_the_same_file(
    kind: Kind, head: Head, dtype: torch.dtype, tmp_path: Path
) -> None:
    """At all eighteen layouts; the file is compared byte by byte, and the config too."""
    hf = original(tmp_path / "hf", kind, head, dtype)
    for layout in LAYOUTS:
        name = "-".join(map(str, layout))
        mg = written(hf, tmp_path / name, layout)
        back = written(mg, tmp_path / f"{name}-back", None)
        for file in (SINGLE, "config.json"):
            assert (back / file).read_bytes() == (hf / file).read_bytes(), layout


def tour(layouts: list[Layout], seed: int) -> Iterator[tuple[Layout, Layout]]:
    """Steps that leave each layout once and arrive at each once, in a seeded order."""
    order = random.Random(seed).sample(layouts, len(layouts))
    yield from pairwise([*order, order[0]])


@MODELS
def test_megatron_to_megatron_gives_the_files_of_the_direct_way(
    kind: Kind, head: Head, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Eighteen steps from layout to layout; which ones, differs from model to model."""
    hf = original(tmp_path / "hf", kind, head, dtype)
    direct = {
        layout: written(hf, tmp_path / "-".join(map(str, layout)), layout) for layout in LAYOUTS
    }
    seed = KINDS.index(kind) * 10 + HEADS.index(head) * 3 + DTYPES.index(dtype)
    for number, (first, second) in enumerate(tour(LAYOUTS, seed)):
        step = written(direct[first], tmp_path / str(number), second)
        assert weights(step) == weights(direct[second]), (first, second)


@pytest.mark.slow
@MODELS
def test_megatron_to_megatron_from_every_layout_to_every_layout(
    kind: Kind, head: Head, dtype: torch.dtype, tmp_path: Path
) -> None:
    """All 324 ordered pairs."""
    hf = original(tmp_path / "hf", kind, head, dtype)
    direct = {
        layout: written(hf, tmp_path / "-".join(map(str, layout)), layout) for layout in LAYOUTS
    }
    for number, (first, second) in enumerate(product(LAYOUTS, LAYOUTS)):
        step = written(direct[first], tmp_path / str(number), second)
        assert weights(step) == weights(direct[second]), (first, second)


def test_the_matrix_is_as_large_as_it_is_said_to_be() -> None:
    """3 families x 3 heads x 2 types x 2 formats x 9 layouts."""
    assert len(KINDS) * len(HEADS) * len(DTYPES) * len(LAYOUTS) == 324
