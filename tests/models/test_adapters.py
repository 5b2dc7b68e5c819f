"""Adapters by name: which layers have them, how they start, what merging makes of them."""

import pytest
import torch

from alignctl.config.families import TRAITS
from alignctl.config.sections import Lora
from alignctl.models.adapters import (
    adapter_shapes,
    adapters,
    add_adapters,
    group_by_weight,
    new_adapter,
)
from alignctl.models.families import weight_map
from alignctl.models.weight_map import hf_shapes
from tests.checkpoints.folders import FAMILY_NAMES, Family, architecture


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_linear_layer_of_the_weight_map_is_a_target(family: Family) -> None:
    """Two layers; all their matrices, under the names that the configuration has."""
    model = architecture(family)
    found = [each.module for each in adapters(model, Lora())]
    names = [name for group in TRAITS[family].lora_targets.values() for name in group]
    assert sorted(found) == sorted(2 * names)
    shapes = hf_shapes(weight_map(model), model)
    matrices = [
        name for name in shapes if len(shapes[name]) == 2 and ("layers" in name or ".h." in name)
    ]
    assert len(matrices) == len(found)


def test_a_group_or_single_names_choose_the_layers() -> None:
    model = architecture("llama2")

    def chosen(*targets: str) -> list[str]:
        found = adapters(model, Lora(targets=targets))
        return [each.module for each in found if "layers.0." in each.weight]

    assert chosen("attention") == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert chosen("mlp") == ["gate_proj", "up_proj", "down_proj"]
    assert chosen("v_proj", "q_proj") == ["q_proj", "v_proj"]


def test_what_training_starts_from_is_a_function_of_name_and_seed() -> None:
    """A within 1 / sqrt(inputs), B zero, so that the model is its base."""
    a = new_adapter("x.a", (4, 64), seed=1)
    assert torch.equal(a, new_adapter("x.a", (4, 64), seed=1))
    assert not torch.equal(a, new_adapter("y.a", (4, 64), seed=1))
    assert not torch.equal(a, new_adapter("x.a", (4, 64), seed=2))
    assert 0.8 / 8 < a.abs().max() <= 1 / 8
    assert not new_adapter("x.b", (64, 4), seed=1).any()


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("targets", [("all",), ("v_proj", "up_proj", "dense")])
def test_merging_changes_each_hugging_face_matrix_by_its_own_adapter(
    family: Family, targets: tuple[str, ...]
) -> None:
    """W + alpha / rank x B A for those that have one, every bit as it was for the others."""
    model, lora = architecture(family), Lora(rank=3, alpha=6.0, targets=targets)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in adapter_shapes(model, lora).items()
    }
    rows, shapes = weight_map(model), hf_shapes(weight_map(model), model)
    for name, own in group_by_weight(model, lora).items():
        row = rows[name]
        parts = [torch.randn(shapes[part], generator=generator) for part in row.hf]
        merged = add_adapters(row.layout.merge(parts, model), row, model, lora, own, tensors)
        wanted = list(parts)
        for each in own:
            a, b = (tensors[key] for key in each.names)
            wanted[each.part] = parts[each.part] + 2 * b @ a
        for ours, theirs in zip(row.layout.split(merged, model), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
