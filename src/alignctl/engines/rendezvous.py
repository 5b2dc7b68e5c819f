"""How ranks find each other at the start: who is missing, who differs, who does not answer.

What NCCL and Gloo say when one of a thousand ranks is wrong is a time-out on the others. So ranks
first meet at torchrun's store, where rank 0 compares what each is about to run; then the process
group is made; then every group of the layout does one all-reduce, and each rank notes at the store
how far it came.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from alignctl.engines.device import DEVICE, IS_GPU
from alignctl.errors import AlignctlError, LostError, RunError, UserError
from alignctl.launch.fingerprint import find_differences

_SECONDS_FOR_THE_VERDICT = 30
_MAX_SHOWN = 6


def join(fingerprint: Mapping[str, str], *, start_seconds: float, timeout_minutes: float) -> None:
    """Meet the other ranks and make the job's process group, once per process.

    Args:
        fingerprint: What has to be the same on every rank, by name.
        start_seconds: How long ranks wait for each other.
        timeout_minutes: How long a rank waits for the others in one collective afterwards.

    Raises:
        UserError: A rank is about to run something else; it is named.
        LostError: Ranks are missing, or cannot be reached; they are named.
    """
    patience = timedelta(seconds=start_seconds)
    store, rank, size = next(iter(rendezvous("env://", timeout=patience)))
    store.set_timeout(patience)
    meet(store, rank, size, fingerprint, start_seconds=start_seconds)
    try:
        dist.init_process_group(
            "nccl" if IS_GPU else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=timeout_minutes),
        )
    except (dist.DistError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise LostError(
            f"{_self(rank)} cannot reach the other ranks: {first}",
            "ranks connect at any port: see that no firewall is between the nodes; "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network interface",
        ) from error


def meet(
    store: Any, rank: int, size: int, fingerprint: Mapping[str, str], *, start_seconds: float
) -> None:
    """Make rank 0 wait for all ranks, compare them, and tell the others what it found."""
    own = {"host": socket.gethostname(), "fingerprint": {**fingerprint, "device": DEVICE.type}}
    store.set(f"rendezvous/{rank}", json.dumps(own))
    if rank == 0:
        try:
            _compare(store, size, start_seconds)
        except AlignctlError as error:
            verdict = {"code": error.exit_code, "message": error.message, "hint": error.hint}
            store.set("rendezvous/verdict", json.dumps(verdict))
            raise
        store.set("rendezvous/verdict", "{}")
        return
    try:
        store.wait(
            ["rendezvous/verdict"], timedelta(seconds=start_seconds + _SECONDS_FOR_THE_VERDICT)
        )
    except (dist.DistError, RuntimeError) as error:
        raise LostError(f"{_self(rank)} did not hear from rank 0", None) from error
    verdict = json.loads(store.get("rendezvous/verdict"))
    if verdict:
        kind = UserError if verdict["code"] == UserError.exit_code else LostError
        raise kind(verdict["message"], verdict["hint"])


def _compare(store: Any, size: int, start_seconds: float) -> None:
    keys = {rank: f"rendezvous/{rank}" for rank in range(size)}
    try:
        store.wait([*keys.values()], timedelta(seconds=start_seconds))
    except (dist.DistError, RuntimeError) as error:
        missing = [rank for rank, key in keys.items() if not store.check([key])]
        raise LostError(
            f"{_ranks(missing)} of {size} did not come within {start_seconds:.0f} seconds",
            "their logs are in the run folder's logs/, as far as they came",
        ) from error
    first = json.loads(store.get(keys[0]))
    for rank, key in keys.items():
        other = json.loads(store.get(key))
        if differences := find_differences(first["fingerprint"], other["fingerprint"]):
            shown = [
                f"  {name}: {here} for rank 0 on {first['host']}, {there} there"
                for name, here, there in differences[:_MAX_SHOWN]
            ]
            raise UserError(
                "\n".join([f"rank {rank} on {other['host']} differs from rank 0:", *shown]),
                "make code, settings and files the same on all nodes",
            )


def check_groups(
    groups: Mapping[str, dist.ProcessGroup],
    *,
    start_seconds: float,
    give_up: Callable[[AlignctlError], None],
) -> None:
    """Run one all-reduce in each group that this rank is in.

    Args:
        groups: By name, such as "tensor-parallel"; the same names in the same order on all ranks.
        start_seconds: How long an answer may take.
        give_up: Ends this process with an error; the collective that hangs cannot be left.

    Raises:
        RunError: A collective failed, or gave a wrong sum.
    """
    store = dist.distributed_c10d._get_default_store()
    rank = dist.get_rank()
    for name, group in groups.items():
        members = dist.get_process_group_ranks(group)
        store.set(f"answer/{name}/{rank}/in", "")
        with _deadline(start_seconds, lambda n=name, m=members: give_up(_silent(store, n, m))):  # type: ignore[misc]
            ones = torch.ones(1, device=DEVICE)
            try:
                dist.all_reduce(ones, group=group)
                total = int(ones.item())  # waits for the device
            except (dist.DistError, RuntimeError) as error:
                raise LostError(
                    f"{_self(rank)}: the {name} group ({_ranks(members)}) does not answer: "
                    f"{str(error).splitlines()[0]}"
                ) from error
        if total != len(members):
            raise RunError(f"{_self(rank)}: the {name} group summed {len(members)} ones to {total}")
        store.set(f"answer/{name}/{rank}/out", "")


def _silent(store: Any, name: str, members: list[int]) -> LostError:
    """Name the ranks that keep a collective from ending: those that did not come, or that hang."""
    absent = [rank for rank in members if not store.check([f"answer/{name}/{rank}/in"])]
    stuck = [rank for rank in members if not store.check([f"answer/{name}/{rank}/out"])]
    what = f"{_ranks(absent)} did not come to" if absent else f"{_ranks(stuck)} did not get through"
    return LostError(
        f"{what} the first collective of the {name} group ({_ranks(members)})",
        "see that all of a node's GPUs work, and that no firewall is between the nodes; "
        "NCCL_DEBUG=INFO tells which connections are tried",
    )


@contextlib.contextmanager
def _deadline(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _self(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()} (process {os.getpid()})"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:_MAX_SHOWN]))
    more = f" and {len(ranks) - _MAX_SHOWN} more" if len(ranks) > _MAX_SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
