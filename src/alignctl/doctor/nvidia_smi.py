"""What NVIDIA's driver says of the machine: its version, the GPUs, how they are linked."""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

_SECONDS = 30
_MAX_PAIRS = 6
_FIELDS = "index,name,driver_version,memory.total,mig.mode.current"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_CUDA = re.compile(r"CUDA (?:UMD )?Version: *(\d+)\.(\d+)")
_INSTANCE = re.compile(r"^ +MIG (\S+) +Device", re.MULTILINE)

_HINTS = {
    "Driver/library version mismatch": "the driver was updated while the old one is loaded: "
    "restart the machine",
    "couldn't communicate with the NVIDIA driver": "the driver is not loaded: `modprobe nvidia`, "
    "or install it again for this kernel; in a container it is the host's",
    "No devices were found": "the driver is loaded and no GPU answers: `dmesg | grep -i nvrm`, "
    "then restart the machine",
}
"""What mends what nvidia-smi says when it fails, by a part of it."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as nvidia-smi lists it."""

    index: int
    name: str
    driver: str
    mebibytes: int | None
    """Of its memory; None where it shares the machine's."""
    has_mig: bool
    """True if it is to be used in parts."""


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi printed.

    Attributes:
        gpus: All GPUs of the machine, also those hidden from CUDA.
        cuda: The newest CUDA that the driver can run, such as (13, 0); None: it does not say.
        links: How each pair of GPUs is connected, in NVIDIA's words: NV18, PIX, PHB, NODE, SYS.
        instances: Profiles of the MIG instances, such as 1g.10gb.
        problems: What is wrong, each with what mends it.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] | None = None
    links: dict[tuple[int, int], str] = field(default_factory=dict)
    instances: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def ask_driver() -> Driver | None:
    """Run nvidia-smi; return None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    answers = []
    for options in ((f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"), (), ("-L",)):
        answer = _run(options)
        if problem := _find_problem(answer):
            return Driver(problems=(problem,))
        answers.append(answer.stdout if answer else "")
    gpus = parse_gpus(answers[0])
    topology = _run(("topo", "-m")) if len(gpus) > 1 else None
    return Driver(
        gpus,
        parse_cuda(answers[1]),
        # A virtual machine's driver may know of no topology: then there is nothing to show.
        parse_links(topology.stdout) if topology and not topology.returncode else {},
        parse_instances(answers[2]),
    )


def _run(options: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run nvidia-smi; return None where it does not end."""
    try:
        return subprocess.run(
            ["nvidia-smi", *options], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None


def _find_problem(answer: subprocess.CompletedProcess[str] | None) -> str | None:
    """Say why nvidia-smi failed, and what mends it; return None where it did not."""
    if answer is None:
        return (
            f"nvidia-smi does not end within {_SECONDS} s: the driver hangs; "
            "`dmesg | grep -i xid` may say why, a restart of the machine mends it"
        )
    said = " ".join((answer.stdout + answer.stderr).split())
    for part, hint in _HINTS.items():
        if part in said:
            return f"nvidia-smi: {part}; {hint}"
    if answer.returncode:
        return f"nvidia-smi ended with code {answer.returncode}: {said or 'it said nothing'}"
    return None


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read the lines of `--query-gpu`, whose fields are separated by commas."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line]
    return tuple(
        Gpu(int(index), name, driver, int(size) if size.isdecimal() else None, mig == "Enabled")
        for index, name, driver, size, mig in rows
    )


def parse_cuda(text: str) -> tuple[int, int] | None:
    """Find the driver's CUDA version in the head of nvidia-smi's table."""
    found = _CUDA.search(text)
    return (int(found[1]), int(found[2])) if found else None


def parse_instances(text: str) -> tuple[str, ...]:
    """List the profiles of the MIG instances that `-L` names."""
    return tuple(_INSTANCE.findall(text))


def parse_links(text: str) -> dict[tuple[int, int], str]:
    """Read the matrix of `topo -m`: pairs of GPUs, the lower number first."""
    lines = [_ESCAPES.sub("", line).split() for line in text.splitlines()]
    heads = [line for line in lines if line and line[0] == "GPU0" and line[1:2] != ["X"]]
    columns = [cell for cell in heads[0] if re.fullmatch(r"GPU\d+", cell)] if heads else []
    links = {}
    for line in lines:
        if not line or line[0] not in columns or line in heads:
            continue
        row = int(line[0].removeprefix("GPU"))
        for name, cell in zip(columns, line[1:], strict=False):
            column = int(name.removeprefix("GPU"))
            if row < column:
                links[row, column] = cell
    return links


def describe_links(links: dict[tuple[int, int], str]) -> str:
    """Write which pairs of GPUs are connected how."""
    kinds = defaultdict(list)
    for pair, kind in sorted(links.items()):
        kinds[kind].append(pair)
    if len(kinds) == 1:
        return f"{next(iter(kinds))} between all"
    return "; ".join(f"{kind} between {_groups(pairs)}" for kind, pairs in kinds.items())


def _groups(pairs: list[tuple[int, int]]) -> str:
    """Write pairs as groups of GPUs that are all connected alike; else one by one, if few."""
    groups: list[set[int]] = []
    for pair in pairs:
        joined = set(pair).union(*(group for group in groups if group & set(pair)))
        groups = [group for group in groups if not group & joined] + [joined]
    whole = {pair for group in groups for pair in combinations(sorted(group), 2)}
    if whole == set(pairs):
        return ", ".join("+".join(map(str, sorted(group))) for group in sorted(groups, key=min))
    if len(pairs) > _MAX_PAIRS:
        return f"{len(pairs)} other pairs"
    return ", ".join(f"{one}+{other}" for one, other in pairs)
