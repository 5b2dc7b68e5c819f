"""The process that runs a reward in a user's file: a line of JSON in, a line of JSON out.

    python -m alignctl.rewards.function_worker FILE NAME one|many

It imports neither torch nor the program of its parent. A thread reads the tasks, so that the
process ends, with what it has started, as soon as the other end of its pipe closes, whatever the
function is doing. The parent kills it when it takes too long.
"""

import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignctl.rewards.processes import READY
from alignctl.rewards.results import Result, fail, read_results


def main() -> None:
    """Answer tasks until there are no more."""
    file, name, how = Path(sys.argv[1]).absolute(), sys.argv[2], sys.argv[3]
    # Whatever the function prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    try:
        function = _load(file, name)
    except BaseException as error:  # a module may leave by SystemExit
        print(json.dumps(_explain(error, file)), file=answers, flush=True)
        return
    print(json.dumps(READY), file=answers, flush=True)
    while True:
        task = json.loads(tasks.get())
        results = _call(function, task, file, is_batched=how == "many")
        print(json.dumps([vars(result) for result in results]), file=answers, flush=True)


def _read(tasks: "queue.SimpleQueue[bytes]") -> None:
    """Take tasks from the pipe; when it closes, end the session that this process leads."""
    for line in sys.stdin.buffer:
        tasks.put(line)
    os.killpg(0, signal.SIGKILL)


def _load(file: Path, name: str) -> Callable[..., Any]:
    """Import a file, from whose folder it may import too, and return its function."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # what pickle and dataclasses look a class up by
    spec.loader.exec_module(module)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found


def _call(
    function: Callable[..., Any], task: dict[str, list[Any]], file: Path, *, is_batched: bool
) -> list[Result]:
    """Score the answers of a task."""
    arguments = task["prompts"], task["completions"], task["rows"]
    count = len(task["prompts"])
    try:
        if is_batched:
            return read_results(function(*arguments), count)
        return read_results([function(*(each[0] for each in arguments))], 1)
    except BaseException as error:  # SystemExit as well: one answer ends no process
        return [fail(_explain(error, file))] * count


def _explain(error: BaseException, file: Path) -> str:
    """Write an exception on a line, with the user's line that it comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: not valid Python: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [each.lineno for each in frames if Path(each.filename) == file]
    where = f"{file.name}:{lines[-1]}: " if lines else f"{file.name}: "
    return f"{where}{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
