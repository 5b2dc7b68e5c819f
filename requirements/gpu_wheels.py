"""Collect what a machine with PyTorch for CUDA lacks, to take there by hand: `make gpu-wheels`.

Such a machine, without a network, may have torch, transformers, peft, accelerate and pytest of
Python 3.12, and none of these. `make test-gpu` and benchmarks/gpu.py run there from a source tree
with the folder gpu-wheels/ in it. vLLM and Transformer Engine are too large: what needs them is
skipped.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = (
    "annotated-types",
    "antlr4-python3-runtime",
    "datasets",
    "dill",
    "isal",
    "latex2sympy2_extended",
    "megatron-core",
    "multiprocess",
    "py3langid",
    "pydantic",
    "pydantic_core",
    "rensa",
    "trl",
    "typing-inspection",
    "zstandard",
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
MAX_MEGABYTES = 60


def read_pins() -> dict[str, str]:
    """Read the versions of the locks, those for Python 3.12; gpu.lock counts before cpu.lock."""
    pins: dict[str, str] = {}
    for lock in ("cpu.lock", "gpu.lock"):
        for line in (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines():
            if found := re.match(r"([\w.-]+)==(\S+)(?: ; python_version (\S+))?", line):
                name, version, when = found.groups()
                if when != "<":
                    pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    return pins


def main(folder: Path) -> int:
    """Download the wheels into a folder; return 1 where they are larger than they may be."""
    pins = read_pins()
    wanted = [f"{name}=={pins[re.sub(r'[-_.]+', '-', name)]}" for name in NAMES]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*map(str, command), *wanted], check=True)
    size = sum(file.stat().st_size for file in folder.glob("*.whl")) / 1e6
    print(f"{len(wanted)} wheels of {size:.0f} MB in {folder}")
    return int(size > MAX_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
