"""Jobs for a scheduler, as text: a batch script for Slurm, a manifest for Kubernetes.

Either starts the same `alignctl STAGE ...` once on every node; `alignctl.launch.nodes` finds out
there which node it is on. Nothing here starts or submits anything.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignctl.errors import UserError

_PORT = 29500
_SECONDS_TO_SAVE = 120
"""How long before its time is up Slurm asks a job to save and leave."""

_SECONDS_TO_TELL = 300
"""How long the other nodes have to end by themselves, and to say why, once one has ended."""

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = 50
"""Kubernetes allows 63; the operator adds `-worker-N`."""


@dataclass(frozen=True)
class Stage:
    """A stage as it is to be started on every node."""

    words: tuple[str, ...]
    """Subcommand, flags and overrides, without `alignctl`."""
    title: str
    """What the job does, for the head of the file."""
    name: str
    """The job's name."""
    nnodes: int
    nproc: int
    """Ranks, and GPUs, on each node."""


@dataclass(frozen=True)
class Slurm:
    """What Slurm is to be told beside the stage's own needs; None leaves a line out."""

    program: str
    """The alignctl of this environment, which the nodes share."""
    folder: Path
    """Where the stage runs; its relative paths start there."""
    gpus_per_node: int
    """0: the partition has none."""
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    cpus_per_task: int | None = None
    setup: Path | None = None
    """A shell file to source on each node first."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, as `qos=high` or `exclusive`."""


def sbatch_script(stage: Stage, slurm: Slurm) -> str:
    """A batch script: one task per node, each of which starts that node's ranks.

    Raises:
        UserError: An option cannot stand in such a script.
    """
    given = {
        "job-name": stage.name,
        "nodes": str(stage.nnodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(slurm.gpus_per_node) if slurm.gpus_per_node else None,
        "cpus-per-task": str(slurm.cpus_per_task) if slurm.cpus_per_task else None,
        "partition": slurm.partition,
        "time": slurm.time,
        "account": slurm.account,
        "chdir": str(slurm.folder),
        "output": f"{stage.name}-%j.out",
        "open-mode": "append",
        "signal": f"TERM@{_SECONDS_TO_SAVE}",
    }
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    directives = [f"#SBATCH --{_directive(option)}" for option in (*options, *slurm.options)]
    step = [
        "srun",
        f"--nodes={stage.nnodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={slurm.cpus_per_task}"] if slurm.cpus_per_task else []),
        "--kill-on-bad-exit=0",
        f"--wait={_SECONDS_TO_TELL}",
    ]
    lines = [*step, shlex.join([slurm.program, stage.words[0]]), *_by_flag(stage.words[1:])]
    command = " \\\n  ".join(lines)
    setup = [] if slurm.setup is None else ["", f". {shlex.quote(str(slurm.setup.resolve()))}"]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {stage.title}",
            *directives,
            *setup,  # before `set`: what modules and conda source does not bear it
            "",
            "set -euo pipefail",
            "",
            "# A port of its own: several jobs may have ranks on one node.",
            'export MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"',
            "",
            "# Requeued or submitted again, it goes on from the last checkpoint. A node that fails",
            "# first says so to the others; they end by themselves and tell why.",
            f"exec {command}",
            "",
        ]
    )


def _directive(option: str) -> str:
    """An option as `#SBATCH` takes it: with a value that holds spaces in double quotes."""
    name, equals, value = option.lstrip("-").partition("=")
    if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9]*", name) or re.search(r'[\n"\\]', value):
        raise UserError(
            f"--option {option!r} is not an option of sbatch",
            "write it as in a script, without dashes: --option qos=high --option exclusive",
        )
    quoted = f'"{value}"' if re.search(r"[\s#']", value) else value
    return f"{name}{equals}{quoted}"


def _by_flag(words: Sequence[str]) -> list[str]:
    """The words of a command as a shell reads them, a flag with its value at a time."""
    lines: list[str] = []
    for word in words:
        is_value = lines and re.fullmatch(r"--[-a-z]+", lines[-1]) and not word.startswith("--")
        if is_value:
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
    return lines


@dataclass(frozen=True)
class Kubernetes:
    """What a PyTorchJob is to be told beside the stage's own needs."""

    image: str
    namespace: str | None = None
    claims: tuple[str, ...] = ()
    """Volumes, as `CLAIM:/path`: a PersistentVolumeClaim and where it is mounted."""
    gpus_per_node: int = 0
    cpus: str | None = None
    memory: str | None = None
    service_account: str | None = None
    restarts: int = 0
    """How often a pod that ended with a signal or lost its node is made anew."""


def pytorch_job(stage: Stage, kubernetes: Kubernetes) -> str:
    """A PyTorchJob of Kubeflow's training operator (kubeflow.org/v1), as YAML.

    Without `nprocPerNode` the operator's WORLD_SIZE and RANK mean pods, as alignctl reads them.

    Raises:
        UserError: A name or a volume is not of the form that Kubernetes wants.
    """
    if not _NAME.fullmatch(stage.name) or len(stage.name) > _MAX_NAME:
        raise UserError(
            f"--name {stage.name!r} cannot be the name of a Kubernetes object",
            f"use a to z, 0 to 9 and dashes, a letter first, {_MAX_NAME} characters at most",
        )
    replicas = {"Master": _replica(stage, kubernetes, 1)}
    if stage.nnodes > 1:
        replicas["Worker"] = _replica(stage, kubernetes, stage.nnodes - 1)
    metadata = {"name": stage.name}
    if kubernetes.namespace is not None:
        metadata["namespace"] = kubernetes.namespace
    manifest = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata,
        "spec": {
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": kubernetes.restarts},
            "pytorchReplicaSpecs": replicas,
        },
    }
    return f"# {stage.title}\n{yaml.safe_dump(manifest, sort_keys=False, width=96)}"


def _replica(stage: Stage, kubernetes: Kubernetes, count: int) -> dict[str, Any]:
    """One of the two kinds of pods; they differ in their number alone."""
    amounts = {
        "cpu": kubernetes.cpus,
        "memory": kubernetes.memory,
        "nvidia.com/gpu": str(kubernetes.gpus_per_node) if kubernetes.gpus_per_node else None,
    }
    limits = {name: amount for name, amount in amounts.items() if amount is not None}
    # NCCL and the data loader share memory; a pod has 64 MiB of it otherwise.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, (claim, path) in enumerate(map(_claim, kubernetes.claims)):
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": path})
    container: dict[str, Any] = {
        "name": "pytorch",  # the operator looks for a container of this name, and for this port
        "image": kubernetes.image,
        "command": ["alignctl", *(word.replace("$(", "$$(") for word in stage.words)],
        "ports": [{"name": "pytorchjob-port", "containerPort": _PORT}],
        "volumeMounts": mounts,
    }
    if limits:
        container["resources"] = {"limits": limits, "requests": dict(limits)}
    spec: dict[str, Any] = {"containers": [container], "volumes": volumes}
    if kubernetes.service_account is not None:
        spec["serviceAccountName"] = kubernetes.service_account
    # A stop saves first, which the default of half a minute may not be enough for.
    spec["terminationGracePeriodSeconds"] = _SECONDS_TO_TELL
    return {
        "replicas": count,
        "restartPolicy": "OnFailure" if kubernetes.restarts else "Never",
        "template": {"spec": spec},
    }


def _claim(text: str) -> tuple[str, str]:
    claim, colon, path = text.partition(":")
    if not colon or not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", claim) or path[:1] != "/":
        raise UserError(
            f"--volume {text!r} should be CLAIM:/path",
            "name a PersistentVolumeClaim, and the absolute path at which pods see it",
        )
    return claim, path
