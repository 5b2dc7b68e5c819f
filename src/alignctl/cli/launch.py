"""Print a job of Slurm or Kubernetes that runs a stage on many nodes."""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from alignctl import console
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.cli.train import Request, make_app
from alignctl.config.bounds import MOST_PROCESSES
from alignctl.config.inputs import require_inputs
from alignctl.config.run import TrainingConfig
from alignctl.config.stages import NAMES
from alignctl.errors import UserError
from alignctl.launch import scheduled
from alignctl.launch.nodes import NodeFlags
from alignctl.stages.shared.stage import Stage, load_stage

app = typer.Typer(
    name="launch",
    help=__doc__,
    epilog=example(
        "alignctl launch slurm --partition gpu --time 12:00:00 \\",
        "  sft --preset llama2-70b --load models/mg --data data/sft | sbatch",
        "alignctl launch kubernetes --image registry/alignctl --volume data:/data \\",
        "  sft --preset llama2-70b --load /data/mg --data /data/sft --output /data/runs/sft \\",
        "  | kubectl apply -f -",
    ),
    **PLAIN,
)

_STAGE_LAST = {"allow_interspersed_args": False}
"""Everything from the stage on belongs to the stage, also what looks like a flag."""

StageArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="STAGE ...", help="The stage with its flags and overrides, as on one node."
    ),
]
NameFlag = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the job; default: PRESET-STAGE.")
]
GpusFlag = Annotated[
    int | None,
    typer.Option(
        min=0, max=MOST_PROCESSES, metavar="N", help="GPUs of each node; default: one per process."
    ),
]

PartitionFlag = Annotated[
    str | None, typer.Option(metavar="NAME", help="Partition; default: Slurm's.")
]
TimeFlag = Annotated[
    str | None,
    typer.Option(
        metavar="HH:MM:SS", help="Longest time; two minutes before, the job saves and leaves."
    ),
]
AccountFlag = Annotated[str | None, typer.Option(metavar="NAME", help="Account that is charged.")]

Kind = Literal["PyTorchJob", "TrainJob"]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.emit(context.get_help())


@app.command(
    "slurm",
    context_settings=_STAGE_LAST,
    epilog=example(
        "alignctl launch slurm --partition gpu --time 12:00:00 --option exclusive \\",
        "  sft --preset llama2-70b --load models/mg --data data/sft --max-restarts 2 | sbatch",
    ),
)
def slurm(
    context: typer.Context,
    stage: StageArgument,
    partition: PartitionFlag = None,
    time: TimeFlag = None,
    account: AccountFlag = None,
    name: NameFlag = None,
    gpus_per_node: GpusFlag = None,
    cpus_per_task: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_PROCESSES, metavar="N", help="Cores of each node that it uses."
        ),
    ] = None,
    setup: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Shell file to source first: modules, variables."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other option of sbatch; may be repeated."),
    ] = None,
    no_check: Annotated[
        bool,
        typer.Option(
            "--no-check", help="Do not look for the stage's inputs here: they are on the cluster."
        ),
    ] = False,
) -> None:
    """Print a batch script for sbatch: one task per node, over a file system that they share."""
    planned = _read(context, stage, name)
    require_inputs(planned.stage.inputs, planned.config, are_here=not no_check)
    if setup is not None and not (no_check or setup.is_file()):
        raise UserError(
            f"--setup {setup} is not a file",
            "name a shell file that nodes can read, or leave it unseen with --no-check",
        )
    settings = scheduled.Slurm(
        program=_program(),
        folder=Path.cwd(),
        gpus_per_node=planned.launched.nproc if gpus_per_node is None else gpus_per_node,
        partition=partition,
        time=time,
        account=account,
        cpus_per_task=cpus_per_task,
        setup=setup,
        options=tuple(option or ()),
    )
    console.emit(scheduled.sbatch_script(planned.launched, settings).rstrip())


@app.command(
    "kubernetes",
    context_settings=_STAGE_LAST,
    epilog=example(
        "alignctl launch kubernetes --image registry/alignctl --volume data:/data \\",
        "  sft --preset llama2-70b --load /data/mg --data /data/sft --output /data/runs/sft \\",
        "  | kubectl apply -f -",
    ),
)
def kubernetes(
    context: typer.Context,
    stage: StageArgument,
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Container image with alignctl.")],
    volume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLAIM:/PATH",
            help="A PersistentVolumeClaim that all pods mount; may be repeated.",
        ),
    ] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Namespace.")] = None,
    name: NameFlag = None,
    gpus_per_node: GpusFlag = None,
    cpus: Annotated[str | None, typer.Option(metavar="N", help="Cores of each pod.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each pod, such as 900Gi.")
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Service account of the pods.")
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="PyTorchJob: training operator 1; TrainJob: Kubeflow Trainer 2.")
    ] = "PyTorchJob",
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="ClusterTrainingRuntime of a TrainJob [torch-distributed]."
        ),
    ] = None,
) -> None:
    """Print a job of Kubeflow: one pod per node."""
    planned = _read(context, stage, name)
    require_inputs(planned.stage.inputs, planned.config, are_here=False)
    if kind != "TrainJob" and runtime is not None:
        raise UserError(f"--runtime {runtime} has no meaning for a {kind}", "add --kind TrainJob")
    settings = scheduled.Kubernetes(
        image=image,
        namespace=namespace,
        claims=tuple(volume or ()),
        gpus_per_node=planned.launched.nproc if gpus_per_node is None else gpus_per_node,
        cpus=cpus,
        memory=memory,
        service_account=service_account,
        restarts=planned.config.launch.max_restarts,
        **({} if runtime is None else {"runtime": runtime}),
    )
    write = scheduled.train_job if kind == "TrainJob" else scheduled.pytorch_job
    console.emit(write(planned.launched, settings).rstrip())


@dataclass(frozen=True)
class Planned:
    """A stage that a scheduler is to start.

    Attributes:
        stage: The stage.
        config: Its configuration.
        launched: What the scheduler has to know of it.
    """

    stage: Stage[Any]
    config: TrainingConfig
    launched: scheduled.Stage


def _read(context: typer.Context, words: list[str], name: str | None) -> Planned:
    """Read the words that name a stage as its own command would.

    Raises:
        UserError: It is no stage of several processes, or its flags are wrong.
    """
    command, *rest = words
    if command not in NAMES:
        raise UserError(
            f"alignctl launch {context.info_name}: {command!r} is not a stage that runs on nodes",
            f"name one of {', '.join(NAMES)}; flags of the "
            "job go in front of it, flags of the stage behind",
        )
    read: list[Request] = []
    stage = load_stage(command)
    program = typer.main.get_command(make_app(stage, read.append))
    with program.make_context(f"alignctl {command}", rest) as inner:
        program.invoke(inner)
    (request,) = read
    if request.preset is None:
        raise UserError(
            "--preset is missing: what suits a model depends on the machine, which is another one",
            "alignctl presets suggest --load DIR --gpus N > FILE.yaml writes one",
        )
    is_simulated = request.simulated_gpu_gib is not None
    if request.nodes != NodeFlags(request.nodes.nnodes) or request.dry_run or is_simulated:
        raise UserError(
            "alignctl launch: nodes find out by themselves who they are and where node 0 is",
            "leave out --node-rank, --master-addr, --master-port, --dry-run and --simulate",
        )
    config = request.resolve(None)
    launch = config.launch
    gpus = "one GPU" if launch.nproc_per_node == 1 else f"{launch.nproc_per_node} GPUs"
    nodes = "one node" if launch.nnodes == 1 else f"{launch.nnodes} nodes"
    default = re.sub(r"[^a-z0-9]+", "-", f"{Path(config.preset).stem}-{command}".lower())
    launched = scheduled.Stage(
        words=tuple(words),
        title=f"alignctl {command} of {config.preset} on {nodes} of {gpus}",
        name=name or default.strip("-"),
        nnodes=launch.nnodes,
        nproc=launch.nproc_per_node,
    )
    return Planned(stage, config, launched)


def _program() -> str:
    """Find this environment's alignctl, which the nodes find at the same place."""
    beside = Path(sys.executable).with_name("alignctl")
    return str(beside) if beside.exists() else shutil.which("alignctl") or "alignctl"
