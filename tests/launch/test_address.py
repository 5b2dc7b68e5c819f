import socket
from collections.abc import Iterator

import pytest

from alignctl.errors import UserError
from alignctl.launch.address import check_rendezvous, interface_towards
from alignctl.launch.nodes import Nodes


@pytest.fixture
def port() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_taken_is_named_and_a_free_one_offered(port: int) -> None:
    with pytest.raises(UserError, match=f"--master-port {port} is taken on this machine") as caught:
        check_rendezvous(Nodes(2, 0, "127.0.0.1", port))
    assert "--master-port " in (caught.value.hint or "")


def test_a_free_port_and_a_port_on_another_machine_are_fine(port: int) -> None:
    check_rendezvous(Nodes(2, 1, "127.0.0.1", port))
    check_rendezvous(Nodes(1, 0, "127.0.0.1", 0))


def test_node_0_at_the_address_of_another_machine_is_refused() -> None:
    """192.0.2.0/24 and 198.51.100.0/24 are kept for documentation: nobody has an address there."""
    with pytest.raises(UserError, match=r"198\.51\.100\.7 is not an address of this machine"):
        check_rendezvous(Nodes(2, 0, "198.51.100.7", 29500))


def test_a_name_that_nobody_knows_is_refused_on_every_node() -> None:
    """RFC 6761 promises that names below .invalid do not resolve."""
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"--master-addr node0\.invalid: this name cannot"):
            check_rendezvous(Nodes(2, rank, "node0.invalid", 29500))


def test_the_interface_towards_an_address() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("::1") is None
