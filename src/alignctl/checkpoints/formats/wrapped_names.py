"""Names of weights that were saved from within a wrapper, as they would have been without it."""

import re

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What DistributedDataParallel, `torch.compile`, FSDP and activation checkpointing put into names:
before all of them, or before those of the modules that were wrapped. No model of ours has a part
of such a name."""

PATTERNS = tuple(_WRAPPERS.pattern + "(?:)" * number for number in range(8))
"""The same for transformers, which takes off one at a time, each by a pattern of its own."""


def unwrap(name: str) -> str:
    """Take out of a name what wrappers put into it."""
    return _WRAPPERS.sub("", name)
