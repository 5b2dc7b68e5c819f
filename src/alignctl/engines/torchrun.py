"""torchrun whose store listens at one address: `python -m alignctl.engines.torchrun`, same flags.

The stores of torchrun's own rendezvous listen at all addresses of a machine and ask nobody who he
is; that of `--standalone` holds pickles too, which whoever reaches the port can replace by his own.
Here the rendezvous is the static one, without pickles, and node 0 gives its store a socket that is
bound already: to loopback where there is one node, else to the address that the others are told.
"""

import os
import sys
from datetime import timedelta

from torch.distributed import TCPStore, run  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher.api import elastic_launch
from typing_extensions import override

from alignctl.launch import address

_NAME = "one-address"
_SECONDS_FOR_NODES = 600


def open_store(
    name: str, port: int, num_clients: int | None, timeout: timedelta = timedelta(minutes=5)
) -> TCPStore:
    """Open a store that listens at one address of this machine.

    Args:
        name: Name or address.
        port: The port; 0 is any free one, see the store's `port`.
        num_clients: How many processes to wait for, with this one; None: for none.
        timeout: How long to wait for them, and later for a key.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
        UserError: The name cannot be resolved.
    """
    listener = address.listen(name, port)
    port = listener.getsockname()[1]
    return TCPStore(
        name,
        port,
        num_clients,
        is_master=True,
        timeout=timeout,
        wait_for_workers=num_clients is not None,
        master_listen_fd=listener.detach(),
    )


class OneAddress(StaticTCPRendezvous):
    """The static rendezvous at `--master-addr` and `--master-port`; port 0 is any free one."""

    @override
    def get_backend(self) -> str:
        return _NAME

    @override
    def next_rendezvous(self) -> RendezvousInfo:
        if self.rank == 0 and self._store is None:
            store = open_store(self.master_addr, self.master_port, self.world_size, self.timeout)
            self.master_port, self._store = store.port, store
        return super().next_rendezvous()


def _handler(parameters: RendezvousParameters) -> RendezvousHandler:
    host, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=-1)
    return OneAddress(
        host,
        port,
        parameters.config["rank"],
        parameters.max_nodes,
        parameters.run_id,
        _SECONDS_FOR_NODES,
    )


@record
def main() -> None:
    """Run one node's part of a job, as torchrun does when it is given these flags."""
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # Kubeflow's defaults for flags; `launch.nodes` has read what counts
    rendezvous_handler_registry.register(_NAME, _handler)
    config, command, arguments = run.config_from_args(run.parse_args(sys.argv[1:]))
    config.rdzv_backend = _NAME
    elastic_launch(config, command)(*arguments)


if __name__ == "__main__":
    main()
