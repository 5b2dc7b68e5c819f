"""Write gpu.lock and te.lock: `make lock-gpu`, after a range of pyproject.toml has changed.

uv resolves the extras once for each Python, and keeps what the lock says already where it may.
Where the two differ, a marker tells which line is whose. No index but the registry is needed.
"""

import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from requirements.resolve import ROOT, compile_pins

PYTHONS = ("3.11", "3.12")
EXTRAS = ("gpu", "deepspeed", "lm-eval", "mt-bench")
HEADERS = {
    "gpu": """\
# Everything for a machine with CUDA GPUs, for Python 3.12 (3.13 and 3.11 too) on Linux x86-64: the
# extras gpu, deepspeed, lm-eval and mt-bench of pyproject.toml. torch and vllm are their builds for
# CUDA 13, which need NVIDIA's driver 580 or later. Made by `make lock-gpu`, within bounds that were
# tested on a CPU; no test has run with it on a GPU. To be installed with
# `pip install --no-deps -r requirements/gpu.lock && pip install --no-deps -e .`.
""",
    "te": """\
# Transformer Engine, beside what is in gpu.lock. transformer-engine-torch is compiled for the torch
# that is installed: it needs nvcc of CUDA 13 and the headers of cuDNN, and takes a quarter of an
# hour. Made by `make lock-gpu`. To be installed after gpu.lock, with
# `pip install --no-deps --no-build-isolation -r requirements/te.lock`.
""",
}


def resolve_pins(extras: tuple[str, ...], python: str, seed: str) -> dict[str, str]:
    """Ask uv for the version of each package of some extras, near those of a lock."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pins.txt"
        # The older Python's lines and the newer one's: uv reads those that hold for it.
        output.write_text(seed, encoding="utf-8")
        options = [word for extra in extras for word in ("--extra", extra)]
        options += ["--upgrade-package", "megatron-core"]  # the newest that a Python can have
        done = compile_pins(python, [*options, "--output-file", str(output), "pyproject.toml"])
        if done.returncode:
            raise SystemExit(done.stderr)
        return dict(re.findall(r"^([\w.-]+)==(\S+)$", output.read_text("utf-8"), re.MULTILINE))


def merge(older: dict[str, str], newer: dict[str, str]) -> list[str]:
    """Write a line for each package, two with markers where Pythons differ."""
    lines = []
    for name in sorted({*older, *newer}):
        if older.get(name) == newer.get(name):
            lines.append(f"{name}=={newer[name]}")
            continue
        for pins, when in ((older, "< '3.12'"), (newer, ">= '3.12'")):
            if name in pins:
                lines.append(f"{name}=={pins[name]} ; python_version {when}")
    return lines


def main() -> None:
    """Resolve both locks and write them."""
    folder = ROOT / "requirements"
    seed = (folder / "gpu.lock").read_text(encoding="utf-8")
    older, newer = (resolve_pins(EXTRAS, python, seed) for python in PYTHONS)
    lines = merge(older, newer)
    te = resolve_pins((*EXTRAS, "te"), PYTHONS[-1], "\n".join(lines))
    moved = {name: te[name] for name, version in newer.items() if te[name] != version}
    if moved:
        raise SystemExit(f"Transformer Engine wants other versions than gpu.lock: {moved}")
    more = [f"{name}=={version}" for name, version in te.items() if name not in newer]
    for name, pins in (("gpu", lines), ("te", more)):
        text = HEADERS[name] + "".join(f"{pin}\n" for pin in pins)
        (folder / f"{name}.lock").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
