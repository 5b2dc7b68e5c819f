"""A tensor-parallel rank beside the first: it does what that one does, until it is told to end."""

import sys

from alignctl.evaluation.tp_workers import Start, broadcast
from alignctl.launch.nodes import LOOPBACK
from alignctl.launch.worker import die_with_parent
from alignctl.rollouts import library


def follow(port: int, rank: int, number: int) -> None:
    """Do what rank 0 does, until it says that there is no more."""
    die_with_parent()
    library.be_quiet()
    # Not at the top: these take seconds, in which the first rank may die, and they talk.
    import torch.distributed as dist

    from alignctl.evaluation.generation import open_weights, start_rollout
    from alignctl.rollouts import alone

    store = dist.TCPStore(LOOPBACK, port, is_master=False)  # type: ignore[attr-defined]
    with alone.process_group(store, rank, number):
        start: Start = broadcast(None)
        source = open_weights(start.load, start.model)
        with start_rollout(source, start.settings, start.longest) as rollout:
            while (requests := broadcast(None)) is not None:
                for _ in rollout.stream(requests):
                    pass


if __name__ == "__main__":
    follow(*map(int, sys.argv[1:]))
