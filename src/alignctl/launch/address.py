"""This machine's addresses and ports, asked of the kernel before torchrun depends on them."""

import errno
import fcntl
import socket
import struct

from alignctl.errors import UserError
from alignctl.launch.nodes import LOOPBACK, Nodes

_SIOCGIFADDR = 0x8915

ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": LOOPBACK}
"""Variables by which the ranks of one node listen where no other machine can reach them.

They would take the address that the machine's name has; what Linux calls loopback is always lo.
"""


def check_rendezvous(nodes: Nodes) -> None:
    """Check that node 0 can open the rendezvous, and that the others can resolve its address.

    Raises:
        UserError: The port is taken, the address is that of another machine, or of none.
    """
    if nodes.master_port == 0:
        return  # one node, any free port
    address = _resolve(nodes.master_addr)
    if nodes.node_rank > 0:
        return
    try:
        _listen(address, nodes.master_port).close()
    except OSError as error:
        raise _explain(nodes, error) from error


def listen(name: str, port: int) -> socket.socket:
    """Listen at one address of this machine.

    Args:
        name: Name or address, which has to be this machine's.
        port: The port; 0 is any free one.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
        UserError: The name cannot be resolved.
    """
    return _listen(_resolve(name), port)


def _listen(address: tuple[int, str], port: int) -> socket.socket:
    listener = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        # A port that an earlier attempt has just left is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[1], port))
        # Binding alone succeeds beside a socket that listens on all addresses.
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _resolve(name: str) -> tuple[int, str]:
    """Resolve a name to the family of its address and the address in numbers."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"--master-addr {name}: this name cannot be resolved ({error.strerror or error})",
            "give the name or address of node 0 as this machine knows it",
        ) from error
    return found[0][0], str(found[0][4][0])


def _explain(nodes: Nodes, error: OSError) -> UserError:
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(
            f"--master-addr {nodes.master_addr} is not an address of this machine "
            f"({socket.gethostname()}), which is node 0",
            "give the address of node 0, or the --node-rank that belongs to this machine",
        )
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"--master-port {nodes.master_port} is taken on this machine: another job may use it",
            f"choose another one, the same on all nodes: --master-port {_free_port()}",
        )
    return UserError(
        f"--master-port {nodes.master_port} cannot be opened: {error.strerror or error}",
        "choose a port from 1024 on, the same on all nodes",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def interface_towards(name: str) -> str | None:
    """Find the network interface by which this machine reaches another one, or its own address.

    Gloo would bind to the address of the machine's own name, which many machines map to loopback:
    the others then cannot connect.

    Args:
        name: Name or address of node 0.

    Returns:
        Such as `eth0`; None when the kernel does not tell (IPv6, or no route).
    """
    family, address = _resolve(name)
    if family != socket.AF_INET:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # of datagrams, this only looks up the route
        except OSError:
            return None
        own = probe.getsockname()[0]
        for _, interface in socket.if_nameindex():
            request = struct.pack("256s", interface.encode())
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an address
            if socket.inet_ntoa(answer[20:24]) == own:
                return interface
    return None
