"""What a layout changes: logits against transformers, and the course of a training.

    python benchmarks/layouts.py                 # about two minutes on two cores

The numbers are those that tests/parallel holds to their bounds, from the same torchrun jobs: tiny
seeded models of four layers and 509 tokens (which no TP divides) in fp32 over gloo. Bounds: 1e-4
for logits, 1e-5 relative for loss and gradient norm, 1e-4 relative for the loss of each of twenty
steps beside transformers and torch's AdamW.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.parallel import jobs  # noqa: E402
from tests.parallel.cases import (  # noqa: E402
    BASELINES,
    FOLLOWING,
    LOGITS,
    MODELS,
    TRAINED,
    TRAINING,
    Case,
)
from tests.parallel.jobs import Result  # noqa: E402


def main() -> None:
    """Run the jobs of one, two and four ranks and print the tables."""
    with tempfile.TemporaryDirectory(prefix="alignctl-layouts-") as name:
        folder = Path(name)
        _make_models(folder)
        found: dict[str, Result] = {}
        for world in (1, 2, 4):
            print(f"running the job of {world} ranks ...", file=sys.stderr, flush=True)
            found |= jobs.run(folder, world=world)
        print(logits_table(found), end="\n\n")
        print(training_table(found), end="\n\n")
        print(following_table(found, folder))


def _make_models(folder: Path) -> None:
    """Make the models; the output of the conversions is dropped."""
    from tests.parallel import reference

    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        reference.make(folder)


def logits_table(found: dict[str, Result]) -> str:
    """Make the table of max |logit difference| per model and layout."""
    rows = [
        [
            f"{layout}, {load}",
            *(
                f"{found[case.name]['difference']:.1e}"
                for model in MODELS
                for case in LOGITS
                if (case.model, case.layout, case.load) == (model, layout, load)
            ),
        ]
        for layout, load in dict.fromkeys((case.layout, case.load) for case in LOGITS)
    ]
    title = "max |logit difference| to transformers, fp32 (layout, loaded from)"
    return _table(title, ["", *MODELS], rows)


def training_table(found: dict[str, Result]) -> str:
    """Make the table of relative differences of loss and gradient norm, per model and variation."""
    baseline = {case.model: found[case.name] for case in BASELINES}

    def cell(case: Case) -> str:
        ours, theirs = found[case.name], baseline[case.model]
        worst = [_worst(ours[key], theirs[key]) for key in ("loss", "grad_norm")]
        return " / ".join(f"{value:.0e}" for value in worst)

    rows = []
    for variation in dict.fromkeys(case.variation for case in TRAINING):
        cells = {case.model: cell(case) for case in TRAINING if case.variation == variation}
        rows.append([variation, *(cells.get(model, "-") for model in TRAINED)])
    title = "loss / gradient norm: largest relative difference to one rank, micro batch 1, 3 steps"
    return _table(title, ["", *TRAINED], rows)


def following_table(found: dict[str, Result], folder: Path) -> str:
    """Make the table of relative differences to the plain loop over twenty steps."""
    rows = []
    for case in FOLLOWING:
        plain = json.loads((folder / case.model / "follow.json").read_text())
        worst = [_worst(found[case.name][key], plain[key]) for key in ("loss", "grad_norm")]
        rows.append([case.model, case.variation, *(f"{value:.1e}" for value in worst)])
    title = "20 steps beside transformers and torch.optim.AdamW: largest relative difference"
    return _table(title, ["model", "variation", "loss", "gradient norm"], rows)


def _worst(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, "", *text])


if __name__ == "__main__":
    main()
