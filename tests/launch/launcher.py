"""A stage's launcher in small: `python -m tests.launch.launcher RUN_FOLDER DEED`."""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignctl import console
from alignctl.errors import AlignctlError
from alignctl.launch import local
from alignctl.launch.attempt import create_or_resume
from alignctl.launch.job import Job, worker_environment
from alignctl.reporting.progress.run import display


class Config(BaseModel):
    deed: str

    def complete(self, recorded: dict[str, Any]) -> dict[str, Any]:
        return recorded


def main(output: str, deed: str) -> int:
    environment = worker_environment(2, os.environ)
    job = Job("tests.launch.ranks", (output,), nproc=2, master_port=0, env=environment)
    try:
        with create_or_resume(Path(output), Config(deed=deed), argv=sys.argv) as attempt:
            local.run(job, attempt, display())
    except AlignctlError as error:
        return console.report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
