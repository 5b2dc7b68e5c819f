"""What all ranks of a job find out together about the model that they load."""

import torch.distributed as dist

from alignctl.checkpoints import adapted, manifest
from alignctl.checkpoints.identity import find_recorded_files, weight_files
from alignctl.checkpoints.manifest import Base, FileRecord
from alignctl.checkpoints.source import Source


def verify_share(source: Source) -> None:
    """Compare the checksums of this rank's share of a model's files.

    Raises:
        UserError: A file is damaged.
    """
    adapted.verify(source, share=dist.get_rank(), num_shares=dist.get_world_size())


def base_of(source: Source) -> Base:
    """Describe the model below adapters, for their checkpoint; all ranks share the work.

    The weight files of other programs are read once: they have no checksums yet.
    """
    mine = find_recorded_files(source)
    if source.manifest is None:
        names = weight_files(source)[dist.get_rank() :: dist.get_world_size()]
        mine = {name: manifest.record(source.path / name) for name in names}
    return Base(path=str(source.path.resolve()), files=gather_records(mine))


def gather_records(mine: dict[str, FileRecord]) -> dict[str, FileRecord]:
    """Gather the records of all ranks."""
    everybody: list[dict[str, FileRecord]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everybody, mine)
    return {name: found for records in everybody for name, found in records.items()}
