"""A torchrun job of one rank that resumes checkpoints made to harm it.

    results = hostile_resumes.run(folder, "megatron")

Each kind of file is put into each place that a pickle could be read from, with the checksums of the
manifest made anew, as whoever could change a file could do. What would run makes a marker.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignctl.launch.job import Job, worker_environment

ROOT = Path(__file__).parents[2]

# The layouts whose states have other kinds of entries: objects, where the optimizer is distributed.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distributed": {"distributed_optimizer": True},
    "adapters": {"lora": True},
    "deepspeed": {"zero_stage": 2},
}


def run(folder: Path, kind: str) -> dict[str, str]:
    """Resumes every hostile checkpoint.

    Returns:
        By place, the refusal; "resumed" where there was none.
    """
    results = folder / "results.json"
    environment = os.environ | dict(worker_environment(1, os.environ)) | {"DS_ACCELERATOR": "cpu"}
    job = Job("tests.engines.hostile_resumes", (str(folder), kind), nproc=1, master_port=0)
    done = subprocess.run(
        job.command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, str] = json.loads(results.read_text())
    return found


class Call:
    """Pickled, it makes the reader run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


# ---- what the rank runs ----


def main(folder: Path, kind: str) -> None:
    """Trains a step, saves, and resumes each hostile copy of what was saved."""
    import torch
    import torch.distributed as dist

    from alignctl.checkpoints.find import find
    from alignctl.engines import checkpoints
    from alignctl.errors import UserError
    from tests.engines import saved_states

    torch.set_num_threads(1)
    layout = dict(KINDS[kind])
    has_lora = layout.pop("lora", False)
    engine = "deepspeed" if kind == "deepspeed" else "megatron"
    saved_states.initialize(engine)
    source = find(folder / "hf")
    one = saved_states.make(engine, source, layout, "fp32", has_lora)
    one.load_weights(source, seed=3)
    one.create_optimizer()
    saved_states.step(one, 0)
    saved_states.save(one, folder / "good", 1, source)
    good = folder / "good/checkpoints/iter_0000001"
    found = {}
    for place, harm in _places(good).items():
        bad = folder / "bad/iter_0000001"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        harm(bad, folder / "marker")
        _record(bad)
        other = saved_states.make(engine, source, layout, "fp32", has_lora)
        other.create_optimizer()
        try:
            checkpoints.resume(other, bad)
        except UserError as error:
            found[place] = error.message
        else:
            found[place] = "resumed"
    (folder / "results.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _record(checkpoint: Path) -> None:
    """A manifest that agrees with the files."""
    from alignctl.checkpoints import manifest

    text = json.loads((checkpoint / manifest.NAME).read_text())
    old = manifest.Manifest.model_validate(text | {"files": {}, "digest": None})
    (checkpoint / manifest.NAME).unlink()
    old.write(checkpoint, manifest.record_all(checkpoint, {}))


Harm = Callable[[Path, Path], None]


def _places(good: Path) -> dict[str, Harm]:
    """Every place of a checkpoint where a pickle is, or could be put."""
    places: dict[str, Harm] = {}
    files = [file for file in sorted(good.rglob("*")) if file.is_file()]
    for file in files:
        name = str(file.relative_to(good))
        if name == "alignctl.json" or name.endswith(".distcp"):
            continue
        for form, content in FORMS.items():
            places[f"{name} is {form}"] = _replaces(name, content)
    if (good / ".metadata").exists():
        places |= _entries(good)
    return places


def _archive(marker: Path) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save([Call(marker)], stream)
    return stream.getvalue()


def _oldest(marker: Path) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save([Call(marker)], stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


FORMS: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda marker: pickle.dumps(Call(marker)),
    "an archive of torch": _archive,
    "a file of before torch 1.6": _oldest,
}


def _replaces(name: str, content: Callable[[Path], bytes]) -> Harm:
    def harm(bad: Path, marker: Path) -> None:
        (bad / name).write_bytes(content(marker))

    return harm


def _entries(good: Path) -> dict[str, Harm]:
    """Every entry of the index, its content another one; every tensor, made an entry of bytes."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    index = pickle.loads((good / ".metadata").read_bytes())
    places: dict[str, Harm] = {}
    for key in index.state_dict_metadata:
        for form, content in FORMS.items():

            def point(bad: Path, marker: Path, *, content: Any = content, key: str = key) -> Any:
                """Appends the content to a file, and has all of the entry be there."""
                whole = pickle.loads((bad / ".metadata").read_bytes())
                at = next(each for each in whole.storage_data if each.fqn == key)
                info = whole.storage_data[at]
                file = bad / info.relative_path
                info.offset, new = file.stat().st_size, content(marker)
                info.length = len(new)
                with file.open("ab") as stream:
                    stream.write(new)
                return whole, at

            def swap(bad: Path, marker: Path, *, point: Any = point) -> None:
                (bad / ".metadata").write_bytes(pickle.dumps(point(bad, marker)[0]))

            def make_bytes(bad: Path, marker: Path, *, point: Any = point, key: str = key) -> None:
                whole, at = point(bad, marker)
                whole.state_dict_metadata[key] = BytesStorageMetadata()
                whole.storage_data[MetadataIndex(key)] = whole.storage_data.pop(at)
                (bad / ".metadata").write_bytes(pickle.dumps(whole))

            places[f"{key}: {form}"] = swap
            places[f"{key}: bytes, {form}"] = make_bytes
    return places


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
