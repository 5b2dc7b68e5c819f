"""PEFT's low-rank adapters on transformers' layers, and the names that their parameters have."""

from torch import Tensor
from torch.nn import Module

from alignctl.config.sections import Lora, Model
from alignctl.models.adapters import PEFT_PREFIX
from alignctl.models.weight_map import HEAD_MODULES


def add_peft(model: Module, layers: Module, architecture: Model, lora: Lora) -> None:
    """Put PEFT's adapters on the layers and freeze the rest, but for a score head.

    Args:
        model: The whole model.
        layers: The part of it that is below the head.
        architecture: The model.
        lora: The adapters' settings. Their numbers are not set.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_dropout=lora.dropout,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=list(lora.modules(architecture.family)),
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, layers)
    for name, parameter in model.named_parameters():
        is_head = name.startswith(tuple(f"{top}." for top in HEAD_MODULES.values()))
        parameter.requires_grad_(is_head or ".lora_" in name)


def hf_parameters(model: Module) -> dict[str, Tensor]:
    """List a model's parameters by the names that they have on disk.

    With adapters around it, a layer's own weight still has Hugging Face's name; A and B have those
    of an adapter file.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer.", ".").replace(".default.", ".")
        found[PEFT_PREFIX + plain if ".lora_" in name else plain] = parameter
    return found
