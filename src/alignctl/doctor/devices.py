"""The GPUs of this machine, as the driver and torch see them, each tried; and what mends them."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from alignctl.doctor.nvidia_smi import Driver, describe_links

_SECONDS = 180
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The first driver branch that runs a CUDA of each major version, as NVIDIA's release notes say."""

_HINTS = {
    "start": "see that the driver and torch's CUDA fit together, and that no other process holds "
    "the GPU for itself (`nvidia-smi -q -d COMPUTE`)",
    "memory": "`nvidia-smi` lists the processes that have it",
    "attention": "`dmesg | grep -i xid` tells whether the GPU is at fault; reset it, or restart "
    "the machine",
    "transformer-engine": "build it again for this torch: "
    "`pip install --no-build-isolation --force-reinstall --no-deps transformer-engine-torch`",
    "all-reduce": "NCCL_DEBUG=INFO tells what it tries; NCCL_P2P_DISABLE=1 whether the links "
    "between GPUs are at fault; a container needs `--ipc=host`",
}
"""What mends a GPU that fails or hangs, by the step it came to."""


def describe(driver: Driver | None, torch: dict[str, Any]) -> list[str]:
    """Write what there is, a line for each: GPUs, driver, links, torch's CUDA and NCCL."""
    sizes = Counter(f"{name} ({size / 2**30:.1f} GiB)" for name, size in torch["gpus"])
    gpus = [f"{number} x {gpu}" if number > 1 else gpu for gpu, number in sizes.items()]
    lines = [f"gpu: {', '.join(gpus) or 'none'}"]
    if driver and driver.gpus:
        cuda = f", CUDA up to {_dotted(driver.cuda)}" if driver.cuda else ""
        lines.append(f"driver: {driver.gpus[0].driver}{cuda}")
        if driver.links:
            lines.append(f"links: {describe_links(driver.links)}")
        if driver.instances:
            counted = [f"{n} x {name}" for name, n in Counter(driver.instances).items()]
            lines.append(f"MIG: {', '.join(counted)}; a process uses one, and NCCL joins none")
    backends = " and ".join(name for name in ("gloo", "nccl") if torch[name])
    nccl = f" {torch['nccl_version']}" if torch["nccl_version"] else ""
    lines.append(
        f"torch: {torch['version']}, CUDA {torch['cuda'] or 'none'}, {backends}"
        f"{nccl if torch['nccl'] else ''}"
    )
    return lines


def find_problems(driver: Driver | None, torch: dict[str, Any]) -> list[str]:
    """List why torch cannot use GPUs that are there, and what mends it."""
    if driver is None:
        if any(Path("/dev").glob("nvidia[0-9]*")) and not torch["gpus"]:
            return [
                "there are NVIDIA devices and no nvidia-smi: start the container with `--gpus all` "
                "and NVIDIA_DRIVER_CAPABILITIES=compute,utility, or install the driver"
            ]
        return []
    if driver.problems or not driver.gpus or torch["gpus"]:
        return list(driver.problems)
    gpus = f"{len(driver.gpus)} x {driver.gpus[0].name}"
    return [f"the driver has {gpus} and torch sees no GPU: {_reason(driver, torch)}"]


def _reason(driver: Driver, torch: dict[str, Any]) -> str:
    """Find why torch sees none of the driver's GPUs."""
    if not torch["cuda"]:
        return f"torch {torch['version']} is built for the CPU; pip install the build for CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not re.search(r"\d", hidden):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides them; unset it"
    built = tuple(map(int, torch["cuda"].split(".")))
    found = driver.gpus[0].driver
    if driver.cuda and driver.cuda[0] < built[0]:
        oldest = _OLDEST_DRIVERS.get(built[0])
        newer = f"driver {oldest} or later" if oldest else "a newer driver"
        return (
            f"driver {found} runs CUDA up to {_dotted(driver.cuda)}, torch was built for "
            f"{torch['cuda']}; install {newer}, or a torch for CUDA {driver.cuda[0]}"
        )
    if all(gpu.has_mig for gpu in driver.gpus) and not driver.instances:
        return "MIG is on and has no instance; `nvidia-smi mig -cgi 0 -C` makes one, -mig 0 ends it"
    return (
        torch["why_not"]
        or "torch does not say why; try `python -c 'import torch; torch.cuda.init()'`"
    )


def try_gpus(names: list[str], *, device: str = "cuda", seconds: float = _SECONDS) -> list[str]:
    """Try attention on each GPU and an all-reduce over all of them; list what fails or hangs.

    Args:
        names: Of the GPUs that torch sees, in its order.
        device: What they are to torch; "cpu" tries as many processes without a GPU.
        seconds: How long all of it may take; what is not done then is ended, and named.
    """
    with tempfile.TemporaryDirectory(prefix="alignctl-doctor-") as folder:
        trials = {}
        for rank, name in enumerate(names):
            words = [device, str(rank), str(len(names)), str(Path(folder) / "store")]
            trials[f"GPU {rank} ({name})"] = [
                *(sys.executable, "-m", "alignctl.doctor.gpu_trial"),
                *words,
            ]
        return run_trials(trials, seconds)


def run_trials(trials: dict[str, list[str]], seconds: float) -> list[str]:
    """Run commands at the same time, which print each step as they begin it; list what went wrong.

    Args:
        trials: Commands, by what they try.
        seconds: How long they may take; then they are killed.
    """
    problems, hung = [], []
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="alignctl-doctor-") as folder:
        running = {}
        for number, (name, command) in enumerate(trials.items()):
            said, words = Path(folder, f"{number}.out"), Path(folder, f"{number}.err")
            with said.open("w") as out, words.open("w") as err:
                running[name] = (subprocess.Popen(command, stdout=out, stderr=err), said, words)
        for name, (process, said, words) in running.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                hung.append((name, _step(said)))
                continue
            if code:
                step, why = _step(said), _last_error(words, code)
                problems.append(f"{name} fails at {step}: {why}; {_HINTS.get(step, '')}")
        for process, _, _ in running.values():
            process.kill()
            process.wait()
    # One that waits in a collective for another one which failed is not at fault itself.
    is_at_fault = {name: not problems or step != "all-reduce" for name, step in hung}
    return problems + [
        f"{name} hangs at {step} ({seconds:.0f} s have passed); {_HINTS.get(step, '')}"
        for name, step in hung
        if is_at_fault[name]
    ]


def _step(said: Path) -> str:
    """Return the step that a trial began last."""
    return (said.read_text(errors="replace").split() or ["start"])[-1]


def _last_error(words: Path, code: int) -> str:
    """Return the line of a trial's stderr that names its error: torch adds advice to CUDA's."""
    lines = words.read_text(errors="replace").strip().splitlines() or [f"code {code}"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (named or lines)[-1]


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
