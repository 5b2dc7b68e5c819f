"""Two checkpoints of any formats and layouts beside each other.

alignctl verify models/llama2-7b runs/llama2-7b-sft
"""

from pathlib import Path

from alignctl import console
from alignctl.checkpoints.find import find
from alignctl.checkpoints.manifest import verify_checksums
from alignctl.errors import UserError
from alignctl.models.families import differences
from alignctl.reporting.progress.bytes import BytesProgress

_SHOWN = 10


def run(first: Path, second: Path) -> bool:
    """Compare every tensor, and print the largest differences.

    Returns:
        Whether every bit is the same.

    Raises:
        UserError: One of them is no model or damaged, or they are models of different shapes.
    """
    from alignctl.checkpoints.comparison import compare

    a, b = find(first), find(second)
    console.say(f"A: {a.description}")
    console.say(f"B: {b.description}")
    found = differences(a.model, b.model)
    if a.head != b.head:
        found.append(f"head: {a.head} != {b.head}")
    if found:
        raise UserError("A and B are different models:\n  " + "\n  ".join(found))
    for source in (a, b):
        if source.manifest:
            verify_checksums(source.path, source.manifest)
    types = [{t.dtype for t in source.tensors.values()} for source in (a, b)]
    if types[0] != types[1]:
        console.say("their types differ: each tensor is compared as the narrower of the two")
    total = sum(tensor.num_bytes for tensor in a.tensors.values())
    with BytesProgress("comparing", total) as progress:
        result = compare(a.tensors, b.tensors, on_bytes=progress.advance)
    if result.is_identical:
        console.emit(result.describe())
        return True
    console.emit(
        f"{len(result.differences)} of {result.num_tensors} tensors differ; the largest "
        "difference of each, A != B:"
    )
    for difference in result.differences[:_SHOWN]:
        console.emit(f"  {difference.describe()}")
    if (more := len(result.differences) - _SHOWN) > 0:
        console.emit(f"  ... and {more} more")
    return False
