"""Disks that are really full: a file system in memory that holds so much and no more."""

import os
import subprocess
from pathlib import Path

from tests.commands import ALIGNCTL, Outcome

_SCRIPT = """
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99
disk=$2; keep=$3; shift 3
"$@"
code=$?
cp -a "$disk/." "$keep" || exit 98
exit $code
"""


def alignctl_on_full_disk(disk: Path, size: str, keep: Path, arguments: list[object]) -> Outcome:
    """Runs a command where one folder is a disk of its own.

    Args:
        disk: The folder; the disk is there for the command only.
        size: What the disk holds, such as 100k.
        keep: Folder that gets a copy of what the command left on the disk.
        arguments: The subcommand and what follows it.
    """
    disk.mkdir()
    keep.mkdir()
    # Whoever is not root may mount in a user namespace of their own.
    own = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [
            *("unshare", *own, "sh", "-c", _SCRIPT, "sh", size, str(disk), str(keep)),
            *(ALIGNCTL, *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode < 98, f"no disk of {size} could be made: {done.stderr}"
    return Outcome(done.returncode, done.stdout, done.stderr)
