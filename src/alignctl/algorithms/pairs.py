"""What the losses over pairs of answers share: sums per document, and the pairs as tensors."""

import torch
from torch import Tensor

from alignctl.algorithms.copies import to_device
from alignctl.data.batch import PreferenceBatch, TokenBatch


def document_sums(values: Tensor, batch: TokenBatch) -> Tensor:
    """Sum over the tokens of each document.

    Args:
        values: One number per token `[T]`; entries behind the batch's last token are left out.
        batch: Whose documents they belong to.

    Returns:
        The sums `[D]`, in the dtype of the values.
    """
    of_batch = values[: batch.num_tokens]
    if batch.pieces.parents:  # what several documents have in common counts for each of them
        of_batch = values[to_device(batch.pieces.places, values.device)]
    # Not index_add: on GPUs its sums come out different from run to run.
    return torch.stack([part.sum() for part in of_batch.split(batch.pieces.document_lengths)])


def pair_tensors(batch: PreferenceBatch, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put the batch's pairs on the device of a tensor.

    Returns:
        Places of the better and of the worse document `[P]`, int64; shares `[P]`, in the dtype of
        the tensor.
    """
    pairs = batch.pairs
    better, worse = to_device(pairs.better, like.device), to_device(pairs.worse, like.device)
    return better, worse, to_device(pairs.share, like.device, like.dtype)


def agreement(margins: Tensor) -> Tensor:
    """Mark each pair `[P]` in the right order with 1, the others with 0; a margin of 0 is 1/2.

    A half because a model that cannot tell two answers apart is right by chance: a policy that is
    still its own reference agrees with half of all pairs, not with none.
    """
    return (margins.sign() + 1) / 2
