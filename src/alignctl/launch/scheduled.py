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
_DNS = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)(m|[kMGTPE]|[KMGTPE]i)?")
_TIME = re.compile(r"(\d{1,9}-)?(\d{1,9})(:[0-5]?\d)?(:[0-5]?\d)?|UNLIMITED")
_LEAST_MEMORY = 2**30
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
    """Write a batch script: one task per node, each of which starts that node's ranks.

    Raises:
        UserError: An option cannot stand in such a script.
    """
    if slurm.time is not None and not _is_time(slurm.time):
        raise UserError(
            f"--time {slurm.time!r} is not a time of Slurm's",
            "write HH:MM:SS or D-HH:MM:SS, such as 12:00:00; 60 minutes are an hour",
        )
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
    lines = [*step, shlex.join([slurm.program, stage.words[0]]), *_group_by_flag(stage.words[1:])]
    command = " \\\n  ".join(lines)
    setup = [] if slurm.setup is None else ["", f". {shlex.quote(str(slurm.setup.resolve()))}"]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {stage.title}",
            *directives,
            *setup,  # before `set`: scripts of modules and conda fail under it
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


def _is_time(text: str) -> bool:
    """Tell whether Slurm reads a text as a time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = _TIME.fullmatch(text)
    return match is not None and (match[1] is None or int(match[2]) < 24)


def _directive(option: str) -> str:
    """Write an option as `#SBATCH` takes it: with a value that holds spaces in double quotes."""
    name, equals, value = option.lstrip("-").partition("=")
    if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9]*", name) or re.search(r'[\n"\\]', value):
        raise UserError(
            f"--option {option!r} is not an option of sbatch",
            "write it as in a script, without dashes: --option qos=high --option exclusive",
        )
    quoted = f'"{value}"' if re.search(r"[\s#']", value) else value
    return f"{name}{equals}{quoted}"


def _group_by_flag(words: Sequence[str]) -> list[str]:
    """Group the words of a command, quoted for a shell: each flag with its value."""
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
    """What Kubeflow is to be told beside the stage's own needs."""

    image: str
    namespace: str | None = None
    claims: tuple[str, ...] = ()
    """Volumes, as `CLAIM:/path`: a PersistentVolumeClaim and where it is mounted."""
    gpus_per_node: int = 0
    cpus: str | None = None
    memory: str | None = None
    service_account: str | None = None
    restarts: int = 0
    """How often a pod that ended with a signal or lost its node is made anew: by a PyTorchJob."""
    runtime: str = "torch-distributed"
    """The ClusterTrainingRuntime of a TrainJob."""


def train_job(stage: Stage, kubernetes: Kubernetes) -> str:
    """Write a TrainJob of Kubeflow Trainer 2 (trainer.kubeflow.org/v1alpha1), as YAML.

    Pods are those of the runtime, whose policy decides what becomes of one that fails; volumes are
    added to them.

    Raises:
        UserError: A name or a volume is not of the form that Kubernetes wants.
    """
    volumes, mounts = _volumes(kubernetes)
    # The runtime's job, and the container in its pods, are both of this name.
    pod = {"containers": [{"name": "node", "volumeMounts": mounts}], "volumes": volumes}
    job = {
        "name": "node",
        "template": _nest("spec", "template", "spec", pod | _policy(kubernetes)),
    }
    trainer: dict[str, Any] = {
        "image": kubernetes.image,
        "command": _command(stage),
        "numNodes": stage.nnodes,
    }
    if resources := _resources(kubernetes):
        trainer["resourcesPerNode"] = resources
    spec = {
        "runtimeRef": {"name": kubernetes.runtime},
        "trainer": trainer,
        "runtimePatches": [
            {
                "manager": "alignctl",
                "trainingRuntimeSpec": _nest("template", "spec", "replicatedJobs", [job]),
            }
        ],
    }
    return _manifest(stage, kubernetes, "trainer.kubeflow.org/v1alpha1", "TrainJob", spec)


def pytorch_job(stage: Stage, kubernetes: Kubernetes) -> str:
    """Write a PyTorchJob of Kubeflow's training operator 1 (kubeflow.org/v1), as YAML.

    Raises:
        UserError: A name or a volume is not of the form that Kubernetes wants.
    """
    replicas = {"Master": _replica(stage, kubernetes, 1)}
    if stage.nnodes > 1:
        replicas["Worker"] = _replica(stage, kubernetes, stage.nnodes - 1)
    spec = {
        "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": kubernetes.restarts},
        "pytorchReplicaSpecs": replicas,
    }
    return _manifest(stage, kubernetes, "kubeflow.org/v1", "PyTorchJob", spec)


def _manifest(
    stage: Stage, kubernetes: Kubernetes, version: str, kind: str, spec: dict[str, Any]
) -> str:
    if not _NAME.fullmatch(stage.name) or len(stage.name) > _MAX_NAME:
        raise UserError(
            f"--name {stage.name!r} cannot be the name of a Kubernetes object",
            f"use a to z, 0 to 9 and dashes, a letter first, {_MAX_NAME} characters at most",
        )
    names = {
        "--namespace": kubernetes.namespace,
        "--service-account": kubernetes.service_account,
        "--runtime": kubernetes.runtime,
    }
    for flag, name in names.items():
        if name is not None and not _DNS.fullmatch(name):
            raise UserError(
                f"{flag} {name!r} cannot be the name of a Kubernetes object",
                "use a to z, 0 to 9, dots and dashes",
            )
    if not re.fullmatch(r"[!-~]+", kubernetes.image):
        raise UserError(f"--image {kubernetes.image!r} cannot be the name of an image")
    metadata = {"name": stage.name}
    if kubernetes.namespace is not None:
        metadata["namespace"] = kubernetes.namespace
    manifest = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return f"# {stage.title}\n{yaml.safe_dump(manifest, sort_keys=False, width=96)}"


def _replica(stage: Stage, kubernetes: Kubernetes, count: int) -> dict[str, Any]:
    """Build one of the two kinds of a PyTorchJob's pods; only their number differs."""
    volumes, mounts = _volumes(kubernetes)
    container: dict[str, Any] = {
        "name": "pytorch",  # the operator looks for a container of this name, and for this port
        "image": kubernetes.image,
        "command": _command(stage),
        "ports": [{"name": "pytorchjob-port", "containerPort": _PORT}],
        "volumeMounts": mounts,
    }
    if resources := _resources(kubernetes):
        container["resources"] = resources
    return {
        "replicas": count,
        "restartPolicy": "OnFailure" if kubernetes.restarts else "Never",
        "template": {"spec": {"containers": [container], "volumes": volumes} | _policy(kubernetes)},
    }


def _command(stage: Stage) -> list[str]:
    """Build the container's command, with `$(` escaped: Kubernetes would put variables there."""
    return ["alignctl", *(word.replace("$(", "$$(") for word in stage.words)]


def _resources(kubernetes: Kubernetes) -> dict[str, Any]:
    cores = _amount("--cpus", kubernetes.cpus, "64 or 1.5")
    memory = _amount("--memory", kubernetes.memory, "900Gi")
    if cores is not None and not 0 < cores <= 2**20:
        raise UserError(f"--cpus {kubernetes.cpus}: no pod has so many", "such as 64 or 1.5")
    if memory is not None and not _LEAST_MEMORY <= memory <= 2**60:
        raise UserError(
            f"--memory {kubernetes.memory}: no pod of a stage can do with it",
            "write the unit too: 900Gi",
        )
    amounts = {
        "cpu": kubernetes.cpus,
        "memory": kubernetes.memory,
        "nvidia.com/gpu": str(kubernetes.gpus_per_node) if kubernetes.gpus_per_node else None,
    }
    limits = {name: amount for name, amount in amounts.items() if amount is not None}
    return {"limits": limits, "requests": dict(limits)} if limits else {}


def _amount(flag: str, text: str | None, example: str) -> float | None:
    """Read a quantity as Kubernetes writes it, in cores or bytes.

    Raises:
        UserError: It is none.
    """
    if text is None:
        return None
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UserError(f"{flag} {text!r} is not a quantity", f"such as {example}")
    unit = match[2] or ""
    power = "kMGTPE".find(unit[:1].replace("K", "k")) + 1 if unit != "m" else -1
    return float(float(match[1]) * (1024.0 if unit.endswith("i") else 1000.0) ** power)


def _volumes(kubernetes: Kubernetes) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """List a pod's volumes, and the places where its container mounts them."""
    # NCCL and the data loader share memory; a pod has 64 MiB of it otherwise.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, (claim, path) in enumerate(map(_claim, kubernetes.claims)):
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": path})
    return volumes, mounts


def _policy(kubernetes: Kubernetes) -> dict[str, Any]:
    """Set a pod's service account, and enough time to save when it is stopped (default: 30 s)."""
    account = kubernetes.service_account
    named = {} if account is None else {"serviceAccountName": account}
    return {**named, "terminationGracePeriodSeconds": _SECONDS_TO_TELL}


def _nest(*keys_and_value: Any) -> dict[str, Any]:
    """Put a value below keys, each in the one before it."""
    *keys, value = keys_and_value
    for key in reversed(keys):
        value = {key: value}
    found: dict[str, Any] = value
    return found


def _claim(text: str) -> tuple[str, str]:
    claim, colon, path = text.partition(":")
    if not colon or not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", claim) or path[:1] != "/":
        raise UserError(
            f"--volume {text!r} should be CLAIM:/path",
            "name a PersistentVolumeClaim, and the absolute path at which pods see it",
        )
    return claim, path
