"""Files of `torch.save` from before torch 1.6: several pickles in a row, read whole.

Tensors and storages are mixed in them, so it is PyTorch that reads them, with its own restricted
unpickler.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

from alignctl.checkpoints.pickles.restricted_pickle import Forbidden, Inert
from alignctl.checkpoints.pickles.torch_names import DROPPED, HARMLESS, KEPT, Dropped
from alignctl.checkpoints.tensors.lazy import LazyTensor, lazily, unreadable


def read(file: Path, stream: BinaryIO) -> Any:
    """Read a file, with a `LazyTensor` in place of each tensor.

    Args:
        file: The file, for messages.
        stream: Its content.

    Raises:
        Forbidden: It asks for a class or function that has no place in a checkpoint.
        UserError: It is damaged, or no file of `torch.save`.
    """
    import torch

    allowed: list[Any] = [*KEPT, *((Inert, name) for name in HARMLESS)]
    allowed += [(Dropped, name) for name in DROPPED]
    try:
        with torch.serialization.safe_globals(allowed):
            tree = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        raise _refusal(file, error) from error
    return lazily(tree, torch.Tensor, lambda each, at: LazyTensor.holding(each, f"{file}: {at}"))


def _refusal(file: Path, error: Exception) -> Exception:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        for mark in ("Unsupported global: GLOBAL ", "unsupported GLOBAL "):
            if mark in text:
                return Forbidden(text.split(mark, 1)[1].split()[0])
    lines = [line for line in text.splitlines() if line.strip()]
    # torch puts advice around what is wrong.
    short = lines[-2] if len(lines) > 1 and "documentation" in lines[-1] else "".join(lines[:1])
    return unreadable(file, "PyTorch", ValueError(short[:200] or repr(error)))
