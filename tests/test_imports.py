import ast
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


@pytest.mark.parametrize("path", [*source_files()], ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_point_one_way(path: Path) -> None:
    """Only the command line imports a stage; config imports none of the rest."""
    everything = imports(path, only_top_level=False)
    if not part(path).startswith("cli") and part(path) != "stages":
        assert not [name for name in everything if within(name, "alignctl.stages")]
    if part(path) == "config":
        allowed = ("alignctl.config", "alignctl.errors", "alignctl.user_files")
        ours = [name for name in everything if within(name, "alignctl") and name != "alignctl"]
        assert all(any(within(name, each) for each in allowed) for name in ours), ours
    if part(path) in MACHINERY:
        assert not [name for name in everything if within(name, "alignctl.cli")]


@pytest.mark.parametrize("path", [*source_files()], ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_machinery_imports_heavy_libraries_at_its_top(path: Path) -> None:
    if part(path) in MACHINERY:
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
