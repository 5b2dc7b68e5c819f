"""One page about runs: curves, marks, answers, settings; for a browser, a phone or a printer.

    alignctl report runs/sft
    alignctl report runs/dpo runs/rlhf runs/mt-bench runs/math --output report.html --png plots

Nothing is started. Runs may be running, killed or finished; whatever is there is shown.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from alignctl import atomic, console
from alignctl.errors import UserError
from alignctl.reporting.progress.ending import finishing
from alignctl.run_folder import RunFolder


@dataclass
class Inputs:
    """What the paths of a command line are.

    Attributes:
        runs: Run folders.
        benchmarks: Files of MT-Bench's results.
        evaluations: Folders with other results of `alignctl eval`.
        answers: Files of answers.
    """

    runs: list[Path] = field(default_factory=list)
    benchmarks: list[Path] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)
    answers: list[Path] = field(default_factory=list)


def run(paths: list[Path], *, output: Path | None, png: Path | None, window: int | None) -> None:
    """Write the page, and print its path.

    Args:
        paths: Run folders, folders with results of evaluations, files of answers.
        output: The page; default: report.html in the run folder, if there is one path.
        png: A folder for the charts as pictures.
        window: Measurements that a strong line is the mean of; None: by the length of each run.

    Raises:
        UserError: A path is none of these; no name was given for a page about several; something
            else has that name already.
    """
    _require_libraries()
    inputs, target = recognise(paths), _target(paths, output)
    with finishing("report", "written", target, shlex.join(["xdg-open", str(target)])):
        _render(inputs, target, png, window)
    console.emit(str(target))


def _render(inputs: Inputs, target: Path, png: Path | None, window: int | None) -> None:
    """Read everything, and write the page and the pictures."""
    from alignctl.reporting.page import answers, benchmark, evaluations, page, recorded_run

    names = recorded_run.short_names(inputs.runs)
    runs = [recorded_run.read(*each) for each in zip(inputs.runs, names, strict=True)]
    damaged = {run.path / "metrics.jsonl": run.damaged for run in runs}
    files = list(zip(recorded_run.short_names(inputs.answers), inputs.answers, strict=True))
    material = page.Material(
        runs,
        benchmark.read(inputs.benchmarks),
        answers.side_by_side(runs, files, damaged),
        [_damage(file, lines) for file, lines in damaged.items() if lines],
        evaluations.read(inputs.evaluations),
        window,
    )
    for text in material.damaged:
        console.say(f"warning: {text}")
    # A model may have written half of a character, which no encoding has.
    _write(target, page.render(material).encode("utf-8", "replace"))
    if png is not None:
        pictures = page.pictures(material)
        for name, picture in pictures.items():
            _write(png / name, picture)
        console.say(f"{len(pictures)} pictures in {png}")


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error


def recognise(paths: list[Path]) -> Inputs:
    """Recognise the kind of each path.

    Raises:
        UserError: With all paths that are nothing that a report can show.
    """
    from alignctl.reporting.page.benchmark import FILE
    from alignctl.reporting.page.evaluations import is_result

    inputs, problems = Inputs(), []
    for path in dict.fromkeys(paths):
        has_marks, has_result = (path / FILE).is_file(), is_result(path)
        if RunFolder(path).config.is_file():
            inputs.runs.append(path)
        elif path.is_file() and path.suffix == ".jsonl":
            inputs.answers.append(path)
        elif not has_marks and not has_result:
            problems.append(f"{path}: {_what(path)}")
        if has_marks:
            inputs.benchmarks.append(path / FILE)
        if has_result:
            inputs.evaluations.append(path)
    if problems:
        raise UserError(
            "\n  ".join(problems),
            "give run folders (with config.json), folders that alignctl eval wrote, or .jsonl "
            "files of answers",
        )
    return inputs


def _what(path: Path) -> str:
    if not path.exists():
        return "there is no such file or folder"
    if path.is_dir():
        return "neither a run folder nor a result of alignctl eval"
    return "no folder, and no .jsonl file"


def _target(paths: list[Path], output: Path | None) -> Path:
    """Choose the file of the page; nothing is replaced but an older page."""
    from alignctl.reporting.page.page import is_ours

    if output is None:
        if len(paths) > 1 or not paths[0].is_dir():
            raise UserError(
                f"--output is missing: a name for the page about {len(paths)} paths",
                "add --output report.html",
            )
        output = paths[0] / "report.html"
    if output.is_dir():
        raise UserError(f"--output {output} is a folder", f"give a file: {output / 'report.html'}")
    if output.exists() and not is_ours(output):
        raise UserError(
            f"--output {output} exists already, and is no page that alignctl wrote",
            "give another name, or remove it first",
        )
    return output


def _damage(file: Path, lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:5])) + (" ..." if len(lines) > 5 else "")
    return f"{file}: {len(lines):,} lines are damaged and left out: {shown}"


def _require_libraries() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]:
        raise UserError(
            f"a report needs {' and '.join(missing)}, not installed here",
            f"pip install {' '.join(missing)}",
        )
