"""The float types of weights, by the names that flags, manifests and configs use."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the values of `--dtype`."""


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name in manifests and in Hugging Face configs: "float32" ..."""
    return str(dtype).removeprefix("torch.")


TORCH_DTYPES = {name_of(dtype): dtype for dtype in DTYPES.values()}
"""By the names in manifests and in Hugging Face configs."""
