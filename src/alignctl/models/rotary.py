"""Rotary positions that are stretched beyond the length of the first training (Llama 3.1)."""

import math

import torch
from torch import Tensor

from alignctl.config.sections import RopeScaling


def scale_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide slow frequencies by the factor, leave fast ones, and go from one to the other between.

    The order of operations is that of transformers, for the same bits.

    Args:
        frequencies: Radians per token `[D / 2]`, fp32.
        scaling: Which are slow and fast: by turns within the original length.

    Returns:
        Radians per token `[D / 2]`, fp32.
    """
    length = scaling.original_max_position_embeddings
    low, high, factor = scaling.low_freq_factor, scaling.high_freq_factor, scaling.factor
    tokens_per_turn = 2 * math.pi / frequencies
    is_slow = tokens_per_turn > length / low
    is_fast = tokens_per_turn < length / high
    share = (length / tokens_per_turn - low) / (high - low)
    between = (1 - share) * frequencies / factor + share * frequencies
    scaled = torch.where(is_slow, frequencies / factor, frequencies)
    return torch.where(is_slow | is_fast, scaled, between)
