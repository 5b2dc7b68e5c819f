"""A GPU: tokens per second, use of the device and peak memory, beside transformers and TRL.

    python benchmarks/gpu.py                            # seven minutes or so on an H200
    python benchmarks/gpu.py --model llama-1b --json result.json
    python benchmarks/gpu.py --tiny                     # a model of kilobytes, on a CPU too

SFT, DPO and the trainer's part of GRPO, of a Llama with 1.1B parameters and of Bloom 1B1, in bf16
with float32 master weights. Everybody has the same rows, of 1,024 to 2,048 tokens; the others pad
them. DPO's reference is given, so are GRPO's answers. Each contender has a process of its own; of
its steps the median is shown. MFU counts the operations of the real tokens; the last column is what
`alignctl plan` computes for rows of their mean length. Nothing is asserted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib import gpu_rows

CONTENDERS = ("alignctl", "transformers", "trl")
_SECONDS = 240


def main() -> None:
    """Run the contenders one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=gpu_rows.MODELS, action="append", help="of these only")
    parser.add_argument("--only", choices=CONTENDERS, action="append", help="of these only")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _measure(options)
        return
    import torch

    if not options.tiny and not torch.cuda.is_available():
        sys.exit("0 run: torch sees no GPU here; --tiny tries the script on a CPU")
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    print(f"{_gpu_name()}, torch {torch.__version__}", flush=True)
    print(HEAD, flush=True)
    for model in options.model or gpu_rows.MODELS:
        for contender in options.only or CONTENDERS:
            for case, found in _run(contender, model, options.tiny).items():
                row = {"model": model, "contender": contender, "case": case, **found}
                rows.append(row | _use(row, options.tiny))
                print(_line(rows[-1]), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _run(contender: str, model: str, is_tiny: bool) -> dict[str, Any]:
    """Let a contender measure all it can, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-") as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, __file__, "--one", contender, "--model", model]
        command += ["--json", str(results), *(["--tiny"] if is_tiny else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return {"all": {"error": f"not done after {_SECONDS} s"}}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return {"all": {"error": lines[-1][:110]}}
        found: dict[str, Any] = json.loads(results.read_text("utf-8"))
        return found


def _measure(options: argparse.Namespace) -> None:
    scale = gpu_rows.TINY if options.tiny else gpu_rows.FULL
    model = gpu_rows.architecture(options.model[0], is_tiny=options.tiny)
    contender = import_module(f"benchmarks.lib.gpu_{options.one}")
    found = contender.measure(model, scale, precision="bf16")
    options.json.write_text(json.dumps(found), encoding="utf-8")


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _use(row: dict[str, Any], is_tiny: bool) -> dict[str, float]:
    """Compute the model FLOP/s over the device's, and what `plan` says of such a step."""
    from alignctl.planning.cost import Job, estimate, flops_per_token
    from alignctl.planning.devices import devices

    known = {name.partition("-")[0]: found for name, found in devices().items()}
    names = [name for name in known if name in _gpu_name().lower()]
    if "error" in row or not names:
        return {}
    scale = gpu_rows.TINY if is_tiny else gpu_rows.FULL
    model, gpu = gpu_rows.architecture(row["model"], is_tiny=is_tiny), known[names[0]]
    length = 3 * scale.length // 4
    flops = 3 * sum(flops_per_token(model, length))
    rows = scale.groups * scale.samples
    job = Job(
        model,
        *(1, 1, 1),
        micro_batch_tokens=scale.micro_batch * length,
        document_tokens=length,
        micro_batches=rows // scale.micro_batch,
    )
    return {
        "mfu": flops * row["tokens_per_second"] / (gpu.tflops["bf16"] * 1e12),
        "plan_tokens_per_second": estimate(job, gpu).tokens_per_second,
    }


HEAD = (
    "| model | contender | what | tokens/s | s/step | peak GiB | MFU | plan's tokens/s |\n"
    "|---|---|---|---:|---:|---:|---:|---:|"
)


def _line(row: dict[str, Any]) -> str:
    start = f"| {row['model']} | {row['contender']} | {row['case']} |"
    if "error" in row:
        return f"{start} {row['error']} | | | | |"
    mfu = f"{row['mfu']:.0%}" if "mfu" in row else "-"
    plan = f"{row['plan_tokens_per_second']:,.0f}" if "plan_tokens_per_second" in row else "-"
    return (
        f"{start} {row['tokens_per_second']:,.0f} | {row['seconds']:.3f} | {row['peak_gib']:.1f} "
        f"| {mfu} | {plan} |"
    )


if __name__ == "__main__":
    main()
