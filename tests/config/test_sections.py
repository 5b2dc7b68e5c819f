import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.presets.problems import known_keys
from alignctl.config.presets.schema import describe_fields
from alignctl.config.run import SFTConfig
from alignctl.config.sections import Model, Section
from alignctl.errors import UserError

LLAMA = {
    "family": "llama2",
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 128,
    "rotary_base": 10000.0,
    "tie_embeddings": False,
}
BLOOM = {
    **LLAMA,
    "family": "bloom",
    "num_query_groups": 4,
    "ffn_hidden_size": 256,
    "rotary_base": None,
}


def test_the_padded_vocabulary_is_megatrons() -> None:
    """500 rows at a divisor of 128: 4 x 128 at TP 1 and 2, and 4 x 128 at TP 4, 8 x 128 at TP 8.

    Llama 2's 32000 = 250 x 128 becomes 32256 at TP 4 and 32768 at TP 8.
    """
    model = Model.model_validate(LLAMA)
    assert [model.padded_vocab_size(tp) for tp in (1, 2, 4, 8)] == [512, 512, 512, 1024]
    llama = model.model_copy(update={"vocab_size": 32000})
    assert [llama.padded_vocab_size(tp) for tp in (1, 2, 4, 8)] == [32000, 32000, 32256, 32768]


@pytest.mark.parametrize(
    ("base", "change", "problem"),
    [
        (LLAMA, {"hidden_size": 66}, "hidden_size 66 is not divisible by num_attention_heads 4"),
        (LLAMA, {"hidden_size": 60}, "rotary positions need an even number"),
        (LLAMA, {"num_query_groups": 3}, "heads 4 is not divisible by num_query_groups 3"),
        (LLAMA, {"rotary_base": None}, "rotary_base is missing"),
        (BLOOM, {"rotary_base": 1e4}, "has no effect: bloom uses ALiBi"),
        (BLOOM, {"num_query_groups": 2}, "bloom has no grouped queries"),
        (BLOOM, {"ffn_hidden_size": 128}, "is not 4 x hidden_size"),
    ],
)
def test_an_impossible_architecture_is_refused(
    base: dict[str, object], change: dict[str, object], problem: str
) -> None:
    Model.model_validate(base)
    with pytest.raises(ValidationError, match=re.escape(problem)):
        Model.model_validate({**base, **change})


def test_a_section_is_frozen() -> None:
    model = Model.model_validate(LLAMA)
    with pytest.raises(ValidationError, match="frozen"):
        model.num_layers = 3  # type: ignore[misc]


@pytest.mark.parametrize("config", STAGES.values(), ids=STAGES)
def test_every_knob_is_documented(config: type[Section]) -> None:
    """A section's own docstring documents the fields that hold sections."""

    def undocumented(section: type[Section], prefix: str = "") -> list[str]:
        texts = describe_fields(section)
        missing = []
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                missing += undocumented(kind, f"{prefix}{name}.")
            elif not texts.get(name, "").endswith("."):
                missing.append(f"{prefix}{name}")
        return missing

    assert undocumented(config) == []
    assert len(known_keys(config)) > 40


RUN = {
    "preset": "x",
    "output": "runs/x",
    "model": LLAMA,
    "precision": "fp32",
    "parallel": {"tp": 2, "pp": 2},
    "launch": {"nproc_per_node": 4, "nnodes": 4},
    "batch": {"micro_batch_size": 2, "global_batch_size": 64, "seq_length": 128},
    "optimizer": {"lr": 1e-3},
    "train": {"epochs": 1.5},
}


def test_the_ranks_divide_into_copies_and_micro_batches() -> None:
    """4 nodes x 4 processes at TP 2 x PP 2 are 4 copies; 64 / (2 x 4) = 8 micro batches."""
    config = SFTConfig.model_validate(RUN)
    assert (config.world_size, config.data_parallel_size, config.num_micro_batches) == (16, 4, 8)


def test_a_batch_of_packed_rows_need_not_divide_among_the_ranks() -> None:
    """Of 65 rows there are at most 65 sequences: nine micro batches on the fullest of four."""
    batch = {**RUN["batch"], "global_batch_size": 65}  # type: ignore[dict-item]
    config = SFTConfig.model_validate(RUN | {"batch": batch, "data": {"packing": "step"}})
    assert (config.pack_capacity, config.num_micro_batches) == (128, 9)
    with pytest.raises(ValidationError, match="65 is not divisible"):
        SFTConfig.model_validate(RUN | {"batch": batch})


@pytest.mark.parametrize(("written", "meant"), [(True, "all"), (False, "none")])
def test_packing_may_still_be_written_as_true_or_false(written: bool, meant: str) -> None:
    assert SFTConfig.model_validate(RUN | {"data": {"packing": written}}).data.packing == meant


def numbers_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Sequence[object]]]:
    """Every number in a model, in its unions, tables and sections, with what bounds it."""
    for name, field in model.model_fields.items():
        yield from _numbers(field.annotation, field.metadata, f"{path}{model.__name__}.{name}")


def _numbers(
    kind: Any, metadata: Sequence[object], where: str
) -> Iterator[tuple[str, Sequence[object]]]:
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        more = [
            each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])
        ]
        yield from _numbers(inner, [*metadata, *more], where)
    elif kind in (int, float):
        yield where, metadata
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from numbers_of(kind, f"{where}: ")
    elif get_origin(kind) is not Literal:
        for each in get_args(kind):
            yield from _numbers(each, metadata, where)


def all_sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in model.__subclasses__():
        yield each
        yield from all_sections(each)


def test_no_number_is_unbounded() -> None:
    """Of the sections of all stages and commands, and of what is nested in them."""
    import alignctl.config.convert
    import alignctl.config.generation  # noqa: F401

    found = {where: bounds for each in all_sections(Section) for where, bounds in numbers_of(each)}
    assert {"Train.seed", "Inputs.blend", "Score.bias", "MathOptions.timeout_seconds"} <= set(found)
    for end, names in (("above", ("le", "lt")), ("below", ("ge", "gt"))):
        unbounded = [
            where
            for where, bounds in found.items()
            if not any(getattr(each, name, None) is not None for each in bounds for name in names)
        ]
        assert unbounded == [], f"unbounded {end}"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (f"train.seed={2**64}", f"train.seed must be at most 2147483647; found {2**64}"),
        (f"launch.timeout_minutes={10**40}", "launch.timeout_minutes must be at most 525600"),
        (f"train.steps={10**40}", "train.steps must be at most 1000000000"),
        ("optimizer.lr=1e40", "optimizer.lr must be at most 10; found 1e+40"),
        (f"model.vocab_size={10**30}", "model.vocab_size must be at most"),
    ],
)
def test_a_dry_run_refuses_numbers_that_no_run_could_take(override: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(SFTConfig, "tiny-llama", {"output": Path("runs")}, [override])
    assert problem in caught.value.message
