"""Which nodes a job runs on, from flags, or the variables of Kubeflow, the tutorials or Slurm.

The tutorials, and PAI-DLC, mean nodes by `WORLD_SIZE` and the node's number by `RANK`; torchrun
later gives its ranks variables of the same names with another meaning, so those are not read inside
of a rank. Kubeflow's operators count processes in `WORLD_SIZE` where a job says `nprocPerNode`, and
say `PET_NNODES` and so on beside it, which torchrun would read; its Trainer 2 says only these.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from alignctl.errors import UserError

DEFAULT_PORT = 29500
"""The rendezvous port of a job on several nodes when nothing else is said: torchrun's own."""

LOOPBACK = "127.0.0.1"
"""Where the processes of one node meet, whatever address others know it by."""

UNKNOWN_ADDRESS = "$MASTER_ADDR"
"""Stands for the address of node 0 where commands are only printed."""


@dataclass(frozen=True)
class NodeFlags:
    """What the command line says about nodes; None where a flag was not given."""

    nnodes: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None


@dataclass(frozen=True)
class Nodes:
    """The nodes of a job, as one of them sees it."""

    nnodes: int
    node_rank: int
    master_addr: str
    master_port: int


@dataclass(frozen=True)
class _Found:
    """A value with where it comes from, for the messages."""

    value: str
    source: str


def nodes_from(
    flags: NodeFlags,
    environ: Mapping[str, str],
    *,
    configured: int | None = None,
    nproc: int = 1,
    is_dry_run: bool = False,
) -> Nodes:
    """Decide on nodes, node rank and rendezvous.

    Flags come first, then the variables of Kubeflow, of the tutorials, and of Slurm.

    Args:
        flags: The command line's flags.
        environ: The environment.
        configured: `launch.nnodes` of the configuration, which has to agree.
        nproc: Processes on each node, for a message.
        is_dry_run: Commands are only printed, for every node: a missing node rank is 0 and a
            missing address is left for the shell to fill in.

    Returns:
        The nodes. On a single node the port is 0 (any free one) unless one was given.

    Raises:
        UserError: When something is missing, contradictory or out of range.
    """
    found = _environment(environ)
    nnodes = _number_of_nodes(flags, found, configured, nproc)
    port = _port(flags, found, default=0 if nnodes == 1 else DEFAULT_PORT)
    if nnodes == 1:
        if flags.node_rank:
            raise UserError(f"--node-rank {flags.node_rank} needs more than one node (--nnodes)")
        return Nodes(1, 0, LOOPBACK, port)
    node_rank = _node_rank(flags, found, nnodes, is_dry_run)
    return Nodes(nnodes, node_rank, _master_address(flags, found, nnodes, is_dry_run), port)


def nnodes_in(environ: Mapping[str, str]) -> int | None:
    """Read the number of nodes from the environment, None if it has none.

    Raises:
        UserError: When the variable is there but is not a number.
    """
    found = _environment(environ).get("nnodes")
    return None if found is None else _integer(found, at_least=1)


def first_host(node_list: str) -> str:
    """Find the first host of a Slurm node list such as `gpu[03-07,9],login1`.

    Raises:
        UserError: When the list is not of that form.
    """
    # The first entry ends at a comma outside of brackets.
    entry = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])+", node_list.strip())
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", entry.group()) if entry else ""
    if not re.fullmatch(r"[\w.-]+", host):
        raise UserError(
            f"cannot find the first host in SLURM_JOB_NODELIST={node_list!r}",
            "give the address of node 0 with --master-addr",
        )
    return host


def _environment(environ: Mapping[str, str]) -> dict[str, _Found]:
    found = _find_set(environ, _SLURM)
    if "LOCAL_RANK" in environ or "TORCHELASTIC_RUN_ID" in environ:
        return found  # set by torchrun for its ranks, as WORLD_SIZE and the others are then
    tutorial, kubeflow = _find_set(environ, _TUTORIAL), _find_set(environ, _KUBEFLOW)
    if "nnodes" in kubeflow:
        low, _, high = kubeflow["nnodes"].value.partition(":")
        if low == high:  # an elastic job that cannot change its size
            kubeflow["nnodes"] = _Found(low, kubeflow["nnodes"].source)
    elif "nnodes" in tutorial:
        _count_nodes(tutorial, found.get("nnodes"), environ.get("PET_NPROC_PER_NODE", ""))
    return found | tutorial | kubeflow


def _count_nodes(tutorial: dict[str, _Found], slurm: _Found | None, per_node: str) -> None:
    """Correct a `WORLD_SIZE` that counts processes, where other variables give the number of nodes.

    With one task on each node, Slurm starts at most as many tasks as it has given nodes: a
    larger `WORLD_SIZE` counts processes, and so does `RANK`. Kubeflow's `RANK` is the pod's.

    Args:
        tutorial: The tutorials' variables, `WORLD_SIZE` among them; changed.
        slurm: The number of nodes that Slurm has given.
        per_node: `PET_NPROC_PER_NODE`, which may be a word.
    """
    world = tutorial["nnodes"].value
    if not world.isdecimal():
        return
    if slurm is not None and slurm.value.isdecimal() and int(world) > int(slurm.value):
        del tutorial["nnodes"]
        tutorial.pop("node_rank", None)
    elif per_node.isdecimal() and int(per_node) and int(world) % int(per_node) == 0:
        tutorial["nnodes"] = _Found(str(int(world) // int(per_node)), "WORLD_SIZE")


_SLURM = {
    "nnodes": "SLURM_NNODES",
    "node_rank": "SLURM_NODEID",
    "node_list": "SLURM_JOB_NODELIST",
}
_TUTORIAL = {
    "nnodes": "WORLD_SIZE",
    "node_rank": "RANK",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
}
_KUBEFLOW = {
    "nnodes": "PET_NNODES",
    "node_rank": "PET_NODE_RANK",
    "master_addr": "PET_MASTER_ADDR",
    "master_port": "PET_MASTER_PORT",
}


def _find_set(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, _Found]:
    """Find those of the variables that are set, and not empty."""
    return {
        name: _Found(environ[variable], variable)
        for name, variable in variables.items()
        if environ.get(variable)
    }


def _integer(found: _Found, *, at_least: int) -> int:
    if not re.fullmatch(r"\s*\d+\s*", found.value) or int(found.value) < at_least:
        raise UserError(f"{found.source}={found.value!r} should be an integer from {at_least} on")
    return int(found.value)


def _number_of_nodes(
    flags: NodeFlags, found: Mapping[str, _Found], configured: int | None, nproc: int
) -> int:
    if flags.nnodes is not None:
        nnodes, source = flags.nnodes, "--nnodes"
    elif "nnodes" in found:
        nnodes, source = _integer(found["nnodes"], at_least=1), found["nnodes"].source
    else:
        return configured or 1
    if nnodes < 1:
        raise UserError(f"{source} {nnodes} should be at least 1")
    if configured is not None and nnodes == configured * nproc > configured:
        raise UserError(
            f"{source}={nnodes} is {configured} nodes (launch.nnodes) x {nproc} processes; it is "
            "read as a number of nodes",
            f"give --nnodes {configured}",
        )
    if configured is not None and configured != nnodes:
        raise UserError(
            f"{source} says {nnodes} nodes, but launch.nnodes is {configured}",
            f"give --nnodes {nnodes} or --nnodes {configured}, whichever is meant",
        )
    return nnodes


def _node_rank(flags: NodeFlags, found: Mapping[str, _Found], nnodes: int, is_dry_run: bool) -> int:
    if flags.node_rank is not None:
        node_rank, source = flags.node_rank, "--node-rank"
    elif "node_rank" in found:
        node_rank, source = _integer(found["node_rank"], at_least=0), found["node_rank"].source
    elif is_dry_run:
        return 0
    else:
        raise UserError(
            f"{nnodes} nodes, but which of them this is was not said",
            f"give --node-rank 0 to {nnodes - 1} (or set RANK): a different one on each node",
        )
    if not 0 <= node_rank < nnodes:
        raise UserError(f"{source} {node_rank} is out of range: {nnodes} nodes have 0-{nnodes - 1}")
    return node_rank


def _master_address(
    flags: NodeFlags, found: Mapping[str, _Found], nnodes: int, is_dry_run: bool
) -> str:
    if flags.master_addr is not None:
        address = _Found(flags.master_addr, "--master-addr")
    elif "master_addr" in found:
        address = found["master_addr"]
    elif "node_list" in found:
        address = _Found(first_host(found["node_list"].value), found["node_list"].source)
    elif is_dry_run:
        return UNKNOWN_ADDRESS
    else:
        raise UserError(
            f"{nnodes} nodes, but the address of node 0 was not said",
            "give --master-addr (or set MASTER_ADDR): node 0's name as the other nodes know it",
        )
    if not address.value.strip() or _is_local(address.value.strip()):
        raise UserError(
            f"{address.source} {address.value!r} is this machine itself for every node: "
            f"{nnodes} nodes would wait for each other for ever",
            "give --master-addr the name or address of node 0 as the other nodes reach it",
        )
    return address.value.strip()


def _is_local(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        name = address.lower().rstrip(".")
        return name.partition(".")[0] in ("localhost", "localhost6", "ip6-localhost")
    return parsed.is_loopback or parsed.is_unspecified


def _port(flags: NodeFlags, found: Mapping[str, _Found], *, default: int) -> int:
    if flags.master_port is not None:
        port, source = flags.master_port, "--master-port"
    elif "master_port" in found:
        port, source = _integer(found["master_port"], at_least=0), found["master_port"].source
    else:
        return default
    if not 1 <= port <= 65535:
        raise UserError(f"{source} {port} is out of range: ports go from 1 to 65535")
    return port
