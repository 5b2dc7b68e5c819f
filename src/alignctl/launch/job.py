"""A torchrun job as a value: which module runs, on how many processes and nodes, at which address.

A stage builds one, `--dry-run` prints it, `launch.local` runs it. Nothing here starts anything.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignctl.launch.address import ON_LOOPBACK
from alignctl.launch.nodes import LOOPBACK


@dataclass(frozen=True)
class Job:
    """One node's part of a torchrun job."""

    module: str
    """The dotted module that every rank runs as `python -m`."""
    args: tuple[str, ...]
    """Arguments of the module; by convention the run folder."""
    nproc: int
    """Processes (ranks) on each node."""
    nnodes: int = 1
    """Nodes in the job."""
    node_rank: int = 0
    """Which of the nodes this is, from 0."""
    master_addr: str = LOOPBACK
    """Host name or address of node 0, as the other nodes reach it."""
    master_port: int = 29500
    """Port of the rendezvous on node 0; 0 (one node only) is any free one."""
    env: tuple[tuple[str, str], ...] = ()
    """Environment variables to set on top of the launcher's own."""

    def command(self) -> list[str]:
        """Build this node's command as a list of arguments: no shell is involved."""
        return [
            *(sys.executable, "-m", "alignctl.engines.torchrun"),
            *("--nproc-per-node", str(self.nproc)),
            *("--nnodes", str(self.nnodes)),
            *("--node-rank", str(self.node_rank)),
            *("--master-addr", self.master_addr),
            *("--master-port", str(self.master_port)),
            *("-m", self.module),
            *self.args,
        ]

    def describe_rendezvous(self) -> str:
        """Say where the nodes meet, for the user's log."""
        return (
            f"node {self.node_rank} of {self.nnodes}, {self.nproc} ranks each, "
            f"at {self.master_addr}:{self.master_port}"
        )

    def on_node(self, node_rank: int) -> "Job":
        """Return the same job as another node has to start it."""
        return replace(self, node_rank=node_rank)

    def render(self) -> str:
        """Write the command as text for a POSIX shell, with the environment it adds in front.

        A master address that is a variable, as "$MASTER_ADDR", is left for the shell to fill in.
        """
        words = [shlex.quote(word) for word in self.command()]
        if self.master_addr.startswith("$"):
            words = [f'"{self.master_addr}"' if w == f"'{self.master_addr}'" else w for w in words]
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.env]
        return " ".join([*settings, *words])


def worker_environment(
    nproc: int, environ: Mapping[str, str], *, nnodes: int = 1
) -> tuple[tuple[str, str], ...]:
    """Choose the variables a job adds for its ranks; those that the user has set are left alone.

    Args:
        nproc: Ranks on each node.
        environ: The launcher's environment.
        nnodes: Nodes in the job.

    Returns:
        Pairs for `Job.env`, in a fixed order.
    """
    wanted = {
        # Megatron's tensor parallel overlap relies on kernels starting in the order of issue.
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        # Rank logs must hold everything up to the moment a rank dies.
        "PYTHONUNBUFFERED": "1",
        # The tokenizers library may hang in a fork once its own threads have run.
        "TOKENIZERS_PARALLELISM": "false",
    }
    if nproc > 1:
        # Several ranks share the cores; each taking all of them is slower than one each.
        wanted["OMP_NUM_THREADS"] = "1"
    if nnodes == 1:
        wanted |= ON_LOOPBACK
    return tuple((name, value) for name, value in sorted(wanted.items()) if name not in environ)
