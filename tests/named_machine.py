"""A machine of its own, whose name belongs to an address that others could reach, as a server's.

It is a network namespace that vanishes with its processes and needs no root where the kernel lets
users make namespaces. Whatever listens there belongs to what was started there.

    python -m tests.named_machine HOSTS COMMAND ...
"""

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

ADDRESS = "10.77.0.1"
_LISTENING = "0A"


def prefix(hosts: Path) -> list[str]:
    """The words in front of a command that is to run there; `hosts` is a file to write."""
    return [
        *("unshare", "--user", "--map-root-user", "--net", "--mount", "--uts"),
        *(sys.executable, "-m", "tests.named_machine", str(hosts)),
    ]


def listening(pid: int) -> set[str]:
    """The addresses at which somebody listens where a process runs, as the kernel says."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENING:
                found.add(_address(words[1].partition(":")[0]))
    return found


def _address(digits: str) -> str:
    """An address of the kernel's table: words of 32 bits in the machine's order of bytes."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


def main(hosts: Path, command: list[str]) -> None:
    """Becomes the command, once the machine around it is made."""
    hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} server\n")
    for words in (
        "ip link set lo up",
        "ip link add cable type veth peer name end",
        f"ip address add {ADDRESS}/24 dev cable",
        "ip link set cable up",
        "hostname server",
        f"mount --bind {hosts} /etc/hosts",
    ):
        subprocess.run(words.split(), check=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
