"""Whether the files of a DeepSpeed checkpoint are of the ranks that their names say.

Files that were exchanged give another model without an error, for each rank's share is a row of
numbers. What a file says of its rank is compared: its own number, the GPU it was on, or, at stages
1 and 2, which weights it says it has. Stage 3 on CPUs says nothing.
"""

import math
from collections.abc import Mapping, Sequence

from alignctl.checkpoints.formats.zero_files import ModelStates, OptimStates
from alignctl.errors import UserError

_EXCHANGED = "files were exchanged or renamed: copy the checkpoint again"


def check(shares: Sequence[OptimStates]) -> bool:
    """Compare the number of each rank, or of its GPU, with the file's place.

    Args:
        shares: The ranks' files, in the order of their names.

    Returns:
        Whether there was something to compare.

    Raises:
        UserError: They are of other ranks.
    """
    for rank, share in enumerate(shares):
        if share.ranks and share.ranks != {rank}:
            raise UserError(f"{share.file}: says that it is of rank {min(share.ranks)}", _EXCHANGED)
    devices = [share.device for share in shares]
    is_one_node = sorted(device for device in devices if device is not None) == [
        *range(len(shares))
    ]
    if is_one_node:
        for rank, (share, device) in enumerate(zip(shares, devices, strict=True)):
            if device != rank:
                raise UserError(
                    f"{share.file}: its weights were on GPU {device}, and those of "
                    f"{shares[devices.index(rank)].file.name} on GPU {rank}",
                    _EXCHANGED,
                )
    return len(shares) > 0 and (is_one_node or all(share.ranks for share in shares))


def check_slices(model: ModelStates, shares: Sequence[OptimStates]) -> bool:
    """Compare the weights that each rank says it has with those that belong to its place.

    Args:
        model: The model's own file, which tells the order of the weights.
        shares: The ranks' files, in the order of their names.

    Returns:
        Whether all ranks say it.

    Raises:
        UserError: A rank has what another one should have.
    """
    expected = [_expect(model, shares, rank) for rank in range(len(shares))]
    for share, own in zip(shares, expected, strict=True):
        if share.slices != own and share.slices in expected:
            other = shares[expected.index(share.slices)]
            raise UserError(
                f"{share.file}: has the weights that {other.file.name} should have", _EXCHANGED
            )
    are_different = all(own not in expected[:rank] for rank, own in enumerate(expected))
    return are_different and [share.slices for share in shares] == expected


def _expect(
    model: ModelStates, shares: Sequence[OptimStates], rank: int
) -> list[Mapping[str, int]]:
    """Count, by group, how many elements of which weights lie in a rank's share."""
    found: list[Mapping[str, int]] = []
    for number, shapes in enumerate(model.shapes):
        sizes = [share.groups[number].numel for share in shares]
        first, last = sum(sizes[:rank]), sum(sizes[: rank + 1])
        paddings = shares[0].paddings[number] if shares[0].paddings else (0,) * len(shapes)
        place, slices = 0, {}
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            end = place + math.prod(shape)
            if (count := min(end, last) - max(place, first)) > 0:
                slices[name] = count
            place = end + padding
        found.append(slices)
    return found
