"""The checkpoints of one trained model of a run: saved, and resumed from.

An engine writes and reads what it holds. All else is here, once for every engine: that a checkpoint
is complete or absent, its checksums and its manifest, what it must agree with to be resumed.
"""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from alignctl.checkpoints import manifest
from alignctl.checkpoints.find import find
from alignctl.checkpoints.manifest import Adapted, Manifest
from alignctl.checkpoints.source import Source
from alignctl.checkpoints.tensors.dtypes import dtype_of
from alignctl.engines import checkpoint_folder
from alignctl.engines.base_model import verify_share
from alignctl.engines.protocol import Engine
from alignctl.run_folder import RunFolder


@dataclass(frozen=True)
class Checkpoints:
    """The folder of checkpoints of one model.

    Attributes:
        folder: Where they are.
        source: The model that the run started from: its auxiliary files are kept, so that every
            checkpoint can become a Hugging Face folder on its own.
        tokenizer: Folder of the tokenizer it is trained with, if not the source's own.
        keep: How many of the newest checkpoints stay; None for all.
    """

    folder: Path
    source: Source
    tokenizer: Path | None = None
    keep: int | None = None

    def save(self, engine: Engine, step: int, *, score_offset: float | None = None) -> Path:
        """Write a checkpoint that is either complete or absent, then point to it.

        Args:
            engine: The model, between two steps.
            step: Optimizer steps taken so far.
            score_offset: `Manifest.score_offset`, for a reward model that is done.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: The disk is full or not writable; older checkpoints are untouched.
        """
        partial = checkpoint_folder.partial_name(self.folder, step)
        final = checkpoint_folder.final_name(self.folder, step)
        if RunFolder(self.folder.parent).latest_step() == step:
            return final  # replacing it would leave a moment without any
        is_first = dist.get_rank() == 0
        if is_first:
            checkpoint_folder.start(self.folder, step)
        dist.barrier()
        records = engine.write(partial, self.source, self.tokenizer)
        if is_first:
            self._describe(engine, step, score_offset).write(
                partial, manifest.record_all(partial, records)
            )
            checkpoint_folder.finish(self.folder, step, keep=self.keep)
        dist.barrier()
        return final

    def _describe(self, engine: Engine, step: int, score_offset: float | None) -> Manifest:
        return Manifest(
            format=engine.checkpoint_format,
            iteration=step,
            role="policy" if engine.head == "lm" else "reward",
            head=engine.head,
            score_offset=score_offset,
            model=engine.architecture,
            dtype=dtype_of(engine.dtype).name,
            padded_vocab_size=engine.padded_vocab_size,
            hf_prefix=self.source.hf_prefix,
            adapted=Adapted(lora=engine.lora, base=engine.base)
            if engine.lora and engine.base
            else None,
            training=engine.layout,
        )


def start(engine: Engine, source: Source, checkpoint: Path | None, *, seed: int) -> int:
    """Load the weights to start from, or resume a checkpoint; return the steps it has taken.

    Args:
        engine: The model, its weights not set.
        source: What it starts from.
        checkpoint: What it goes on from; None: it starts.
        seed: Of weights that the source does not have.

    Raises:
        UserError: As of `Engine.load_weights` and `resume`.
    """
    if checkpoint is None:
        engine.load_weights(source, seed=seed)
    engine.create_optimizer()
    return 0 if checkpoint is None else resume(engine, checkpoint)


def resume(engine: Engine, checkpoint: Path) -> int:
    """Restore weights, optimizer and random states; return the number of steps taken.

    Raises:
        UserError: The checkpoint was saved at another layout or on another kind of device, or it
            is damaged.
    """
    found = manifest.read(checkpoint)
    manifest.check_layout(checkpoint, found, engine.layout)
    source = find(checkpoint)
    verify_share(source)
    if source.adapted and found.adapted:
        engine.load_weights(source.adapted.base)
        engine.base = found.adapted.base
    dist.barrier()  # nothing is used before all of it is known to be whole
    engine.read(checkpoint)
    dist.barrier()
    return found.iteration
