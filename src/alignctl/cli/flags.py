"""Flags that mean the same in every command, and the way examples are shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignctl import console
from alignctl.config.bounds import MOST, MOST_PROCESSES
from alignctl.config.stages import NAMES
from alignctl.errors import UserError

if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[NAMES]
    """A stage that trains; typer offers these words."""

PresetFlag = Annotated[
    str, typer.Option("--preset", metavar="NAME|FILE", help="Preset: its name, or a YAML file.")
]
SuitingPresetFlag = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Preset: its name, or a YAML file; default: one made for the model of --load.",
    ),
]
MaybePresetFlag = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Preset whose architecture the model must have; default: believe its config.json.",
    ),
]
NamePresetFlag = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Preset by whose name everything is found that is not given.",
    ),
]
TokenizerFlag = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="DIR", help="Tokenizer; default: beside the model."),
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Print what would run, and start nothing.")
]
WaitFlag = Annotated[
    bool,
    typer.Option("--wait", help="Wait for another command that is writing the same, if there is."),
]
SimulateFlag = Annotated[
    bool,
    typer.Option(
        "--simulate",
        help="Run a step of every kind of rank without GPUs, and report its memory; start nothing.",
    ),
]
GpuMemoryFlag = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory",
        min=1,
        max=10**6,
        metavar="GIB",
        help="Memory of a GPU, with --simulate; default: 80.",
    ),
]
DtypeFlag = Annotated[
    Literal["keep", "fp32", "bf16", "fp16"],
    typer.Option("--dtype", help="Type of the tensors written; keep: as they are read."),
]
RoleFlag = Annotated[
    Literal["policy", "reward"] | None,
    typer.Option("--role", help="What the weights must be; default: what is found."),
]
FormatFlag = Annotated[
    Literal["mcore", "legacy"],
    typer.Option(
        "--format",
        help="mcore: Megatron-Core's distributed checkpoint; legacy: Megatron-LM's, by rank.",
    ),
]
TPFlag = Annotated[
    int | None,
    typer.Option(
        "--tp",
        min=1,
        max=MOST_PROCESSES,
        metavar="N",
        help="Tensor-parallel ranks; default: the preset's, or 1.",
    ),
]
PPFlag = Annotated[
    int | None,
    typer.Option(
        "--pp",
        min=1,
        max=MOST_PROCESSES,
        metavar="N",
        help="Pipeline stages; default: the preset's, or 1.",
    ),
]
VerifyFlag = Annotated[
    Literal["full", "fast", "none"],
    typer.Option(
        "--verify",
        help="Compare the result with the source. full: every tensor, and the outputs of all "
        "layers in transformers and Megatron-Core; fast: the outputs of three layers; none.",
    ),
]
ValidationDataFlag = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Validation data: a file or a folder.")
]
OutputFlag = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/PRESET-STAGE.")
]
NprocFlag = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_PROCESSES, metavar="N", help="Processes per node; default: the preset's."
    ),
]
NnodesFlag = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_PROCESSES,
        metavar="N",
        help="Nodes; default: the environment's, the preset's.",
    ),
]
NodeRankFlag = Annotated[
    int | None,
    typer.Option(min=0, max=MOST_PROCESSES, metavar="N", help="Which node this is, from 0."),
]
MasterAddrFlag = Annotated[
    str | None, typer.Option(metavar="HOST", help="Node 0, as the other nodes reach it.")
]
MasterPortFlag = Annotated[
    int | None, typer.Option(min=0, max=65535, metavar="N", help="Free port on node 0.")
]
MaxRestartsFlag = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST,
        metavar="N",
        help="Go on from the last checkpoint this often after losing a process or node.",
    ),
]
NoResumeFlag = Annotated[
    bool, typer.Option("--no-resume", help="Refuse a run folder that was already started.")
]
PresetArgument = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A preset.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="key=value", help="Knobs to change, such as optimizer.lr=1e-5 parallel.tp=2."
    ),
]


def example(*lines: str) -> str:
    """Write examples for the end of a command's help; the mark keeps their line breaks."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def say_found(found: Mapping[str, Path]) -> None:
    """Say what is taken for flags that are left out, a line for each."""
    for flag, path in found.items():
        console.say(f"{flag} {path}, by its name")


def find_by_name(flags: Mapping[str, Any], **finders: Callable[[], Path]) -> dict[str, Path]:
    """Find by convention what is not named by a flag, and say it.

    Args:
        flags: Flag to its value, None where there is none.
        **finders: How each is found.
    """
    found = {flag: find() for flag, find in finders.items() if flags[flag] is None}
    say_found({f"--{flag.replace('_', '-')}": path for flag, path in found.items()})
    return found


def require_flags(flags: Mapping[str, Any], *names: str) -> None:
    """Refuse a command line without a flag that it needs.

    Raises:
        UserError: With all that are missing.
    """
    missing = [f"--{name}" for name in names if flags[name] is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: missing",
            "name it, or give --preset NAME, by which it is found",
        )
