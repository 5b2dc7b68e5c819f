"""The run folder: where everything of one run lies, what "finished" means, and who may write.

    config.json  command.txt  environment.json  metrics.jsonl  result.json (written last)
    logs/  tensorboard/  data/  checkpoints/iter_0000100/ + latest_checkpointed_iteration.txt

The launcher opens it with `alignctl.launch.attempt.create_or_resume`; ranks and later stages only
look things up in `RunFolder(path)`.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl import atomic
from alignctl.errors import UserError
from alignctl.user_files import read_json, read_text

LATEST = "latest_checkpointed_iteration.txt"
"""Megatron's name for the file that holds the number of the newest complete checkpoint."""


@dataclass(frozen=True)
class RunFolder:
    """The names of the things in a run folder, and what can be read from them."""

    path: Path

    @property
    def config(self) -> Path:
        """File of the resolved configuration; its presence is what makes a folder a run."""
        return self.path / "config.json"

    @property
    def command(self) -> Path:
        """File of the command lines that started the run, one for each attempt."""
        return self.path / "command.txt"

    @property
    def environment(self) -> Path:
        """File of versions and devices of the latest attempt."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """File with a JSON object on each line: see `alignctl.reporting.metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """File of the result, written last, once, when the run is complete."""
        return self.path / "result.json"

    @property
    def logs(self) -> Path:
        """Folder of the logs of the ranks and of torchrun, and of the ranks' errors."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def tracking(self) -> Path:
        """File of the numbers of the run with trackers: see `alignctl.reporting.trackers`."""
        return self.path / "tracking.json"

    @property
    def profile(self) -> Path:
        """Folder of the traces of steps that were profiled."""
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints and of the file that names the newest."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Link to the best checkpoint, where a run keeps it."""
        return self.path / "best"

    @property
    def value(self) -> "RunFolder":
        """Folder of the checkpoints of a value model, which `--load` takes too."""
        return RunFolder(self.path / "value")

    @property
    def data(self) -> Path:
        """Folder of prepared data."""
        return self.path / "data"

    @property
    def origin(self) -> Path:
        """Folder of what the run started from: see `alignctl.checkpoints.origin`."""
        return self.path / "origin"

    @property
    def stop_file(self) -> Path:
        """File that stops the run: when it exists, ranks finish their step, save and leave."""
        return self.path / "stop"

    def node_file(self, node_rank: int) -> Path:
        """Name the file by which one of several nodes reports to others: see `launch.peers`."""
        return self.path / "nodes" / f"node_{node_rank}.json"

    def torchrun_log(self, node_rank: int) -> Path:
        """Name the log of one node's torchrun, and of its ranks until they open their own."""
        return self.logs / f"torchrun_node_{node_rank}.log"

    def rank_log(self, rank: int) -> Path:
        """Name the log of everything that one rank printed, attempt after attempt."""
        return self.logs / f"rank_{rank}.log"

    def rank_error(self, rank: int) -> Path:
        """Name the JSON file that says why a rank failed; there only when it did."""
        return self.logs / f"error_rank_{rank}.json"

    def rank_reserve(self, rank: int) -> Path:
        """Name the file that keeps disk space for a rank's error, in case the disk is full."""
        return self.logs / f".error_rank_{rank}.reserve"

    def rank_ended(self, rank: int) -> Path:
        """Name the file that is there when a rank of the latest attempt has left in good order."""
        return self.logs / f"ended_rank_{rank}"

    def latest_checkpoint(self) -> Path | None:
        """Find the newest complete checkpoint; None when nothing was saved yet.

        Raises:
            UserError: When the file that names it is damaged or names a folder that is gone.
        """
        pointer = self.checkpoints / LATEST
        if not pointer.exists():
            return None
        text = read_text(pointer, 1000).strip()
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise UserError(
                f"{pointer} should hold the number of a checkpoint, but reads {text[:40]!r}",
                "write the number of a folder iter_NNNNNNN beside it into the file",
            )
        folder = self.checkpoints / f"iter_{int(text):07d}"
        if not folder.is_dir():
            raise UserError(
                f"{pointer} names {folder.name}, which is not there",
                "put the folder back, or write the number of another one into the file",
            )
        return folder

    def latest_step(self) -> int:
        """Return the step of the newest complete checkpoint, 0 when nothing was saved yet."""
        checkpoint = self.latest_checkpoint()
        return 0 if checkpoint is None else int(checkpoint.name.removeprefix("iter_"))

    def remove_unfinished(self) -> None:
        """Remove hidden folders that killed saves and removals of checkpoints have left.

        No rank may be saving: the one who names checkpoints, rank 0, does this, or the launcher
        of its node when no rank is running.
        """
        for left in self.checkpoints.glob(".iter_*"):
            shutil.rmtree(left)

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration as plain values.

        Raises:
            UserError: When the folder is no run, or its configuration cannot be read.
        """
        return read_object(self.config)

    def read_result(self) -> dict[str, Any] | None:
        """Read the result of a finished run, None as long as it is not finished.

        Raises:
            UserError: When the file is there but cannot be read.
        """
        is_there = self.result.exists() or self.result.is_symlink()  # also one that leads nowhere
        return read_object(self.result) if is_there else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Mark the run as finished; everything the result refers to must be on the disk by now."""
        atomic.write_text(self.result, json.dumps(result, indent=2) + "\n")


_ITERATION = re.compile(r"(?:iter_)?([0-9]{1,15})\Z")


def checkpoint_at(path: Path) -> Path:
    """Find the checkpoint that `RUN@best` or `RUN@iter_100` means; leave other paths as they are.

    A path that is there means itself, whatever its name is.

    Raises:
        UserError: The run is there, and has no such checkpoint.
    """
    run, which = _split(path)
    if which is None:
        return path
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    best = RunFolder(run).best
    if which == "best" and best.is_dir():
        return best.parent / best.readlink() if best.is_symlink() else best
    if (found := _ITERATION.match(which)) is not None:
        checkpoint = folder / f"iter_{int(found[1]):07d}"
        if checkpoint.is_dir():
            return checkpoint
    there = sorted(each for each in folder.glob("iter_*") if _ITERATION.match(each.name))
    known = [f"@iter_{int(each.name.removeprefix('iter_'))}" for each in there if each.is_dir()]
    known = [*(["@best"] if best.is_dir() else []), *known]
    missing = "; a run keeps its best with checkpoint.keep_best" if which == "best" else ""
    raise UserError(
        f"{path}: there is no checkpoint {which!r} in {run}{missing}",
        f"there are {', '.join(known)}" if known else f"{run} holds no checkpoints by iteration",
    )


def run_at(path: Path) -> Path:
    """Return the run that `RUN@best` is of, whatever it holds; other paths as they are."""
    return _split(path)[0]


def _split(path: Path) -> tuple[Path, str | None]:
    """Split `RUN@best` into both; a path that means itself has None behind it."""
    name, at, which = path.name.rpartition("@")
    run = path.with_name(name) if name else path.parent
    if not at or os.path.lexists(path) or not run.is_dir():
        return path, None
    return run, which


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a run folder.

    Raises:
        UserError: When the file is missing, unreadable or holds something else.
    """
    if not path.exists():
        raise UserError(
            f"{path.parent} is not a run folder: it has no {path.name}",
            "give the folder that an earlier stage had as --output",
        )
    return read_json(path)
