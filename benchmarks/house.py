"""The house in numbers: how long its parts are, who imports whom, how its docstrings begin.

    python benchmarks/house.py                  # this checkout
    python benchmarks/house.py --package SRC --tests TESTS --readme README    # another project

Static, by Python's own parser; imports inside functions and for type checkers are counted too.
Words are told apart by their endings and by short lists, so those lines are estimates. The last
table is of the presets: distinct lines over those that are not blank are what is written once.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import networkx

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")

_MANY = 7
"""Parameters that are still few."""
QUESTIONS = {"what", "whether", "which", "who", "whose", "where", "when", "how", "why"}
ARTICLES = {"the", "a", "an", "one", "this", "its", "their", "all", "every", "each", "no", "those"}
_PREPOSITIONS = {
    "of",
    "by",
    "with",
    "without",
    "from",
    "to",
    "in",
    "on",
    "at",
    "as",
    "for",
    "beside",
}


@dataclass
class Module:
    """One file of a package.

    Attributes:
        name: Dotted, below the package.
        lines: How many.
        imports: Modules of the package that it imports, anywhere.
        num_late: Imports inside functions.
        functions: Its functions and methods.
        docstrings: Of functions and methods that have one.
        publics: Functions, methods and classes without an underscore.
    """

    name: str
    lines: int
    imports: set[str] = field(default_factory=set)
    num_late: int = 0
    functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=list)
    docstrings: list[str] = field(default_factory=list)
    publics: list[ast.AST] = field(default_factory=list)


def main() -> None:
    """Measure a package and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--package", type=Path, default=ROOT / "src" / "alignctl")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    modules = read_package(options.package)
    for name, value in measure(modules, options.tests, options.readme):
        print(f"{name:52} {value}")
    if (presets := ROOT / "presets").is_dir() and options.package.is_relative_to(ROOT):
        print()
        for row in measure_presets(presets):
            print(row)


def read_package(package: Path) -> list[Module]:
    """Read all modules of a package; a folder that is a link is followed."""
    files = {
        ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(_files(package))
    }
    names = set(files)
    return [_read(name, file, package.name, names) for name, file in files.items()]


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def _read(name: str, file: Path, package: str, names: set[str]) -> Module:
    text = file.read_text(encoding="utf-8")
    module = Module(name, len(text.splitlines()))
    tree = ast.parse(text)
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    module.num_late = len(late)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            module.functions.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                module.publics.append(node)
            if (docstring := ast.get_docstring(node)) and not isinstance(node, ast.ClassDef):
                module.docstrings.append(docstring)
        for target in _imported(node, name, package):
            found = next((each for each in _prefixes(target) if each in names), None)
            if found is not None and found != name:
                module.imports.add(found)
    return module


def _imported(node: ast.AST, name: str, package: str) -> Iterator[str]:
    """Yield what an import names, below the package."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith(f"{package}."):
                yield alias.name.removeprefix(f"{package}.")
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = name.split(".")[: -node.level]
            base = ".".join([package, *parts, *([base] if base else [])])
        if base == package or base.startswith(f"{package}."):
            below = base.removeprefix(package).removeprefix(".")
            for alias in node.names:
                yield f"{below}.{alias.name}" if below else alias.name


def _prefixes(name: str) -> Iterator[str]:
    """Yield a name and those of the packages around it, the innermost first."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        yield ".".join(parts[:count])


def measure(modules: list[Module], tests: Path, readme: Path) -> Iterator[tuple[str, str]]:
    """Yield the figures of a package with their names."""
    lines = [module.lines for module in modules]
    total = sum(lines)
    functions = [function for module in modules for function in module.functions]
    many = sum(_num_parameters(function) > _MANY for function in functions)
    yield "modules / thousand lines", f"{len(modules)} / {total / 1000:.1f}"
    yield "module lines, median / p90 / max", _spread(lines, 10, 9)
    yield "function lines, median / p99 / max", _spread(function_lengths(modules), 100, 99)
    yield (
        f"functions with more than {_MANY} parameters",
        f"{many} ({100 * many / len(functions):.1f} %)",
    )
    publics = [each for module in modules for each in module.publics]
    typed = [each for each in publics if isinstance(each, ast.FunctionDef)]
    yield (
        "public functions typed / publics documented",
        f"{_percent(typed, _is_typed)} / {_percent(publics, _is_documented)}",
    )
    graph = networkx.DiGraph()
    graph.add_nodes_from(module.name for module in modules)
    graph.add_edges_from((module.name, each) for module in modules for each in module.imports)
    depth = networkx.dag_longest_path_length(networkx.condensation(graph)) + 1
    yield "import depth / imports per module", f"{depth} / {graph.size() / len(modules):.1f}"
    circles = [each for each in networkx.strongly_connected_components(graph) if len(each) > 1]
    yield "import circles (files in them)", f"{len(circles)} ({sum(map(len, circles))})"
    for circle in circles:
        yield "  a circle", " ".join(sorted(circle))
    rooms = Counter(module.name.rpartition(".")[0] for module in modules)
    yield "modules of a folder, median / max", f"{median(rooms.values())} / {max(rooms.values())}"
    yield "imports inside functions per thousand lines", f"{late_imports(modules):.1f}"
    first = opening_words(modules)
    yield (
        "docstrings of functions that open with a wh-word / an article",
        f"{_percent(first, QUESTIONS.__contains__)} / {_percent(first, ARTICLES.__contains__)}",
    )
    named = [function.name.strip("_").split("_")[0] for function in functions]
    yield "functions named by a participle or a preposition", _percent(named, _is_no_verb)
    basenames = Counter(module.name.rpartition(".")[2] for module in modules)
    yield "names of modules used twice", str(sum(count > 1 for count in basenames.values()))
    tested = sum(len(file.read_text("utf-8").splitlines()) for file in tests.rglob("*.py"))
    yield "lines of tests per line of source", f"{tested / total:.2f}"
    yield "README lines", str(len(readme.read_text("utf-8").splitlines()))


def function_lengths(modules: Iterable[Module]) -> list[int]:
    """Count the lines of every function and method, with its docstring."""
    functions = [function for module in modules for function in module.functions]
    return [(each.end_lineno or each.lineno) - each.lineno + 1 for each in functions]


def late_imports(modules: Sequence[Module]) -> float:
    """Count the imports inside functions, per thousand lines."""
    num_lines = sum(module.lines for module in modules)
    return 1000 * sum(module.num_late for module in modules) / num_lines


def opening_words(modules: Iterable[Module]) -> list[str]:
    """List the first words of the docstrings of functions and methods, in lower case."""
    docstrings = [docstring for module in modules for docstring in module.docstrings]
    return [docstring.split()[0].strip("`,.:").lower() for docstring in docstrings]


def measure_presets(folder: Path) -> Iterator[str]:
    """Yield a line for each preset, and one for all: lines, not blank, distinct, their share."""
    whole: list[str] = []
    for file in sorted(folder.rglob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        whole += lines
        yield _row(str(file.relative_to(folder)), lines)
    yield _row("all presets", whole)


def _row(name: str, lines: list[str]) -> str:
    written = [line for line in lines if line.strip()]
    distinct = len(set(written))
    return f"{name:24} {len(lines):5} {len(written):5} {distinct:5} {distinct / len(written):.3f}"


def _num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _is_typed(function: ast.AST) -> bool:
    assert isinstance(function, ast.FunctionDef)
    arguments = [*function.args.args, *function.args.kwonlyargs]
    untyped = [each for each in arguments if each.annotation is None]
    return function.returns is not None and {each.arg for each in untyped} <= {"self", "cls"}


def _is_documented(node: ast.AST) -> bool:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return ast.get_docstring(node) is not None


def _is_no_verb(word: str) -> bool:
    is_participle = len(word) > len("need") and word.endswith(("ed", "ing"))
    return is_participle or word in _PREPOSITIONS


def _percent(values: Sequence[T], holds: Callable[[T], bool]) -> str:
    """Write the share of the values for which something holds."""
    return f"{100 * sum(map(holds, values)) / max(1, len(values)):.1f} %"


def _spread(values: list[int], parts: int, place: int) -> str:
    """Write median, a quantile and maximum."""
    return f"{median(values):g} / {quantiles(values, n=parts)[place - 1]:g} / {max(values)}"


if __name__ == "__main__":
    main()
