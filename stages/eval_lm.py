"""Tasks of lm-evaluation-harness, for checkpoints of any kind.

    alignctl eval lm-eval runs/sft runs/dpo --tasks hellaswag,arc_easy --output runs/harness

The harness loads models by transformers. What is no Hugging Face folder is converted into a
temporary one, tensor by tensor, which is removed afterwards. Tasks, prompts and numbers are the
harness's own; it downloads their data sets, unless they are local.
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignctl import console
from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.tensors.dtypes import BY_FLAG
from alignctl.config.generation import HarnessOptions
from alignctl.config.presets.problems import did_you_mean
from alignctl.errors import RunError, UserError
from alignctl.evaluation import results
from alignctl.reporting.progress.bytes import BytesProgress

if TYPE_CHECKING:
    from alignctl.checkpoints.source import Source


def run(options: HarnessOptions, *, as_json: bool) -> None:
    """Measure every model on all tasks, and print the table.

    Raises:
        UserError: The harness is not installed, knows no such task, or an input is wrong.
        RunError: The harness failed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed", "pip install -e '.[lm-eval]'")
    from alignctl.evaluation.generation import open_weights

    names = results.names_of(options.models)
    sources = [open_weights(model) for model in options.models]
    for source in sources:
        source.tokenizer_folder(options.tokenizer)  # refuses a model that has none
    tasks = _tasks(options)
    results.make_folder(options.output)
    found: dict[str, Any] = {}
    for name, source in zip(names, sources, strict=True):
        console.say(f"model: {source.description}")
        with _hf_folder(source, options.tokenizer) as folder:
            found[name] = {"model": source.description, **_measured(folder, tasks, options)}
    text = results.write(
        options.output,
        {
            "eval": "lm-eval",
            "version": metadata.version("lm_eval"),
            "settings": options.model_dump(mode="json"),
            "models": found,
        },
    )
    console.emit(text if as_json else _table(found))


def _tasks(options: HarnessOptions) -> Any:
    """Make the harness's index of tasks, and check that it has all that were named."""
    from lm_eval.tasks import TaskManager

    if options.include_path and not options.include_path.is_dir():
        raise UserError(f"--include-path {options.include_path}: there is no such folder")
    manager = TaskManager(include_path=str(options.include_path) if options.include_path else None)
    known = set(manager.all_tasks)
    unknown = [task for task in options.tasks if task not in known]
    if unknown:
        raise UserError(
            f"--tasks: lm-evaluation-harness has no task {unknown[0]!r}"
            f"{did_you_mean(unknown[0], known)}",
            "python -m lm_eval ls tasks lists them; --include-path DIR adds your own",
        )
    return manager


@contextmanager
def _hf_folder(source: "Source", tokenizer: Path | None) -> Iterator[Path]:
    """Yield the model's folder as transformers loads it: its own, or a temporary one."""
    if source.kind == "hf" and source.adapted is None and tokenizer is None:
        yield source.path
        return

    with tempfile.TemporaryDirectory(prefix="alignctl-lm-eval-") as folder:
        total = sum(tensor.num_bytes for tensor in source.tensors.values())
        with BytesProgress("converting", total) as progress:
            convert(
                source,
                Path(folder),
                Target("hf", tokenizer=tokenizer),
                on_bytes=progress.advance,
            )
        yield Path(folder)


def _measured(folder: Path, tasks: Any, options: HarnessOptions) -> dict[str, Any]:
    """Run the harness, and return its numbers by task and metric."""
    import torch
    from lm_eval import simple_evaluate

    precision = options.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    try:
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": BY_FLAG[precision].name},
            tasks=list(options.tasks),
            num_fewshot=options.num_fewshot,
            batch_size=options.batch,
            limit=options.limit,
            device="cuda" if torch.cuda.is_available() else "cpu",
            apply_chat_template=options.chat_template,
            task_manager=tasks,
            log_samples=False,
        )
    except Exception as error:  # the harness raises whatever its tasks and libraries raise
        raise RunError(
            f"lm-evaluation-harness failed: {type(error).__name__}: {error}",
            "its tasks download their data sets: without a network, keep them in the cache of "
            "`datasets`, or use tasks with local files",
        ) from error
    assert found is not None
    return {
        "results": {
            task: {key: value for key, value in measured.items() if isinstance(value, int | float)}
            for task, measured in found["results"].items()
        },
        "higher_is_better": found.get("higher_is_better", {}),
        "num_fewshot": found.get("n-shot", {}),
        "samples": found.get("n-samples", {}),
    }


def _table(found: dict[str, Any]) -> str:
    """Format a row for each task and metric, with its standard error where the harness has one."""
    rows: dict[str, list[str]] = {}
    for model in found.values():
        for task, measured in model["results"].items():
            for key, value in measured.items():
                metric, _, kind = key.partition(",")
                if metric.endswith("_stderr") or not kind:
                    continue
                error = measured.get(f"{metric}_stderr,{kind}")
                cell = f"{value:.4f}" + (f" +- {error:.4f}" if error is not None else "")
                suffix = "" if kind == "none" else f" ({kind})"
                rows.setdefault(f"{task} {metric}{suffix}", []).append(cell)
    return results.table("", list(found), rows)
