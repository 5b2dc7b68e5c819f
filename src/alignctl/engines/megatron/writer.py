"""The way of a sharded state to the disk: described by Megatron, written by torch, in this process.

Megatron-Core's own strategy starts a manager process for the first save of a rank, which imports
everything once more and outlives a rank that is killed, and forks writers off a process that has
threads. One writer in the rank itself needs neither, gives the same files, and its errors arrive
as what they are.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from alignctl.checkpoints.formats import mcore


class _Stream(io.BufferedWriter):
    """A file that remembers why it could not be written: torch's archives tell of bytes alone."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


class _Disk(FileSystem):
    """torch's way to files, by which a full disk stays an error of the system's."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        stream = _Stream(io.FileIO(path, mode))
        try:
            with stream:
                yield stream
        except Exception as error:
            cause = stream.error or error
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = str(path)
            if cause is error:
                raise
            raise cause from error


class InProcessStrategy(TorchDistSaveShardedStrategy):
    """Megatron's `torch_dist` format, one file for each rank."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> None:
        """Write this rank's shards; every rank must call it.

        Raises:
            OSError: A rank could not write; raised on all of them.
        """
        # What is not a tensor: up to 0.18 Megatron itself has written this file by now.
        common = sharded_state_dict.pop("common_state", None)
        if common is not None and dist.get_rank() == 0:
            torch.save(common.data, Path(checkpoint_dir) / mcore.COMMON)
        tensors, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        # One thread: torch's further ones lose their errors.
        writer = FileSystemWriter(checkpoint_dir, thread_count=1, sync_files=True)
        writer.fs = _Disk()
        planner = MCoreSavePlanner(
            flatten_state_dict=False, can_run_decentralized_global_plan=False
        )
        try:
            save(mcore_to_pyt_state_dict(tensors, False), storage_writer=writer, planner=planner)
        except CheckpointException as error:
            # Not an Exception, and its text is made of tracebacks: the first cause says it better.
            raise next(iter(error.failures.values()))[0] from error
