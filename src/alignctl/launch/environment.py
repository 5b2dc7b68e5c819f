"""What a run was made with: versions and devices, for `environment.json` and for `doctor`.

Only what is listed here is ever written: the process environment may hold tokens and passwords.
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "alignctl",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "transformer-engine",
    "flash-attn",
    "deepspeed",
    "vllm",
)
"""Distributions whose version can change the numbers of a run."""

_NVIDIA = Path("/proc/driver/nvidia/gpus")


def describe() -> dict[str, object]:
    """List versions of Python and packages, platform, processor, GPUs, and alignctl's commit."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpu_names(),
        "packages": package_versions(),
        "commit": source_commit(),
    }


def package_versions() -> dict[str, str | None]:
    """Read the installed version of each package of `PACKAGES`, None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_name() -> str:
    """Read the processor's name from the kernel; return its architecture where there is no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gpu_names() -> list[str]:
    """Read the names of the NVIDIA devices from the driver: to ask torch would import it."""
    names = []
    for information in sorted(_NVIDIA.glob("*/information")):
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def source_commit() -> str | None:
    """Return the git commit of a source checkout, None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    # Installed packages lie inside some other project's folder more often than not; only a
    # checkout has this very file at this place.
    if not (root / ".git").exists() or not (root / "src/alignctl/launch/environment.py").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # git is not installed, or refuses a checkout that belongs to another user
    return done.stdout.strip()
