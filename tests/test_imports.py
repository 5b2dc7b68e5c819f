import ast
import re
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

from benchmarks.house import read_package

SOURCE = Path(__file__).parents[1] / "src" / "alignctl"
HEAVY = ("torch", "megatron", "transformers", "vllm", "deepspeed")
MACHINERY = (
    "models",
    "checkpoints",
    "engines",
    "rollouts",
    "algorithms",
    "on_policy",
    "simulation",
)


WORKERS = (
    "stages/shared/training.py",
    "stages/shared/on_policy.py",
    "stages/shared/step_clock.py",
    "doctor/gpu_trial.py",
)
"""What only processes of their own import: ranks, and what tries a GPU."""


def source_files(folder: Path = SOURCE) -> Iterator[Path]:
    """Every module, those behind the links too."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from source_files(path)
        elif path.suffix == ".py":
            yield path


def part(path: Path) -> str:
    """The part of the package that a module belongs to, such as config."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, *, only_top_level: bool) -> set[str]:
    """Dotted names that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if only_top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def read_table() -> dict[str, set[str]]:
    """Which rooms each room may import, as ARCHITECTURE says."""
    text = (SOURCE.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", text, re.MULTILINE)
    return {
        room: set() if others == "nothing" else set(others.split(", ")) for room, others in rows
    }


def room(module: str) -> str:
    """The folder that a module lies in; empty for those that all may import."""
    first = module.partition(".")[0]
    return first if (SOURCE / first).is_dir() else ""


def test_rooms_import_what_the_table_says_and_all_of_it() -> None:
    """Late imports and those for type checkers count too."""
    found: dict[str, set[str]] = {}
    for module in read_package(SOURCE):
        others = {room(other) for other in module.imports}
        found.setdefault(room(module.name), set()).update(others - {"", room(module.name)})
    assert found.pop("") == {"cli"}  # the program, and alignctl started as a module
    assert found == read_table()


def test_rooms_have_an_order() -> None:
    graph = networkx.DiGraph(
        (here, other) for here, others in read_table().items() for other in others
    )
    assert networkx.is_directed_acyclic_graph(graph)


@pytest.mark.parametrize("path", [*source_files()], ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_machinery_imports_heavy_libraries_at_its_top(path: Path) -> None:
    if part(path) in MACHINERY or str(path.relative_to(SOURCE)) in WORKERS:
        return
    top = imports(path, only_top_level=True)
    assert not [name for name in top for heavy in HEAVY if within(name, heavy)]


def test_the_links_bring_in_the_stages() -> None:
    assert SOURCE / "stages" / "__init__.py" in set(source_files())


def test_no_module_imports_itself_by_a_detour() -> None:
    """Late imports and those for type checkers count too."""
    modules = read_package(SOURCE)
    graph = networkx.DiGraph((each.name, other) for each in modules for other in each.imports)
    circles = [each for each in networkx.strongly_connected_components(graph) if len(each) > 1]
    assert circles == []
    assert graph.number_of_nodes() > 200
