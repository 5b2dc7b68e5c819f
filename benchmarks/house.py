"""Lines of the presets and their recipes: all, not blank, distinct.

    python benchmarks/house.py

The last column is distinct lines over those that are not blank: what is written once. Comments
count as lines.
"""

from pathlib import Path

PRESETS = Path(__file__).resolve().parents[1] / "presets"


def main() -> None:
    """Print a line for each file, and one for all."""
    whole: list[str] = []
    for file in sorted(PRESETS.rglob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        whole += lines
        _print(str(file.relative_to(PRESETS)), lines)
    _print("all", whole)


def _print(name: str, lines: list[str]) -> None:
    written = [line for line in lines if line.strip()]
    distinct = len(set(written))
    print(f"{name:24} {len(lines):5} {len(written):5} {distinct:5} {distinct / len(written):.3f}")


if __name__ == "__main__":
    main()
