"""Trackers: what metrics.jsonl gets, also for W&B, MLflow, Trackio and SwanLab, by their libraries.

Each keeps its files in `RUN/tracking/` unless its own variables name a server or a folder, and is
offline unless they name a key. `RUN/tracking.json` keeps the number of the tracker's run, by which
a resumed run goes on in the same one. Keys are read by the libraries, from their own places.
"""

import importlib
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from alignctl import atomic
from alignctl.errors import RunError, UserError
from alignctl.reporting.page.redaction import hide
from alignctl.run_folder import RunFolder, read_object

FILE = "tracking.json"
_ID_LENGTH = 21
"""Of the number of a run, which SwanLab wants so long."""


class Tracker(Protocol):
    """One tracker's run, open for this attempt."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements by their names, such as train/loss, after a step."""

    def close(self) -> None:
        """Write out what is pending."""


class _Wandb:
    def __init__(self, run: "Opened") -> None:
        wandb: Any = importlib.import_module("wandb")
        # A key alone may be one of somebody else's shell; WANDB_MODE has the last word.
        mode = os.environ.get("WANDB_MODE")
        if mode is None:
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        # No console, code, git address or machine: they may hold what nobody wants to send.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(run.folder),
            config=run.config,
            settings=settings,
        )
        # By our own step: a resumed run may measure steps again that W&B has counted.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """End this attempt at the run."""
        self._run.finish()


class _Mlflow:
    def __init__(self, run: "Opened") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        where = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlruns").resolve().as_uri()
        if where.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = mlflow.MlflowClient(where)
        if run.is_resumed:
            self._id = run.id
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self._client.create_experiment(run.project)
        started = self._client.create_run(experiment, run_name=run.name)
        self._id = run.id = started.info.run_id
        for name, value in _flat(run.config):
            self._client.log_param(self._id, name, value[:500])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements."""
        now = round(1000 * time.time())
        metrics = [self._entities.Metric(name, each, now, step) for name, each in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, run: "Opened") -> None:
        os.environ.setdefault("TRACKIO_DIR", str((run.folder / "trackio").resolve()))
        trackio: Any = importlib.import_module("trackio")
        # The name is what a run is found by; two runs of one name would be one.
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id[:8]}",
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is pending."""
        self._run.finish()


class _Swanlab:
    def __init__(self, run: "Opened") -> None:
        swanlab: Any = importlib.import_module("swanlab")
        mode = os.environ.get("SWANLAB_MODE")
        if mode is None:
            mode = "online" if os.environ.get("SWANLAB_API_KEY") else "offline"
        # As with W&B: neither the console nor the machine, its packages or git addresses.
        quiet = dict.fromkeys(("hardware", "runtime", "requirements", "git", "monitor"), False)
        settings = swanlab.Settings(interactive=False, terminal={"proxy_type": "none"}, probe=quiet)
        self._run = swanlab.init(
            settings=settings,
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            mode=mode,
            log_dir=str(run.folder / "swanlab"),
            config=run.config,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is pending."""
        self._run.finish()


TRACKERS: dict[str, Callable[["Opened"], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
    "swanlab": _Swanlab,
}
"""What opens a run of each, by the name of its knob, which is that of its library and extra too."""


class Opened:
    """What a tracker is told of a run.

    Attributes:
        folder: Where it keeps its files.
        project: What it files the run under.
        name: What the run is called there.
        config: The resolved configuration.
        id: The number of its run, drawn here; a tracker that draws its own puts it in its place.
        is_resumed: Whether an earlier attempt has opened that run.
    """

    def __init__(
        self, folder: Path, project: str, name: str, config: dict[str, Any], id: str | None
    ) -> None:
        self.folder, self.project, self.name, self.config = folder, project, name, config
        self.is_resumed = id is not None
        self.id = id or secrets.token_hex(_ID_LENGTH)[:_ID_LENGTH]


def check(names: list[str]) -> None:
    """Check that the libraries of trackers are here.

    Raises:
        UserError: One is not.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            "; ".join(f"tracking.{name} needs {name}, which is not installed" for name in missing),
            f"pip install -e '.[{','.join(missing)}]' in alignctl's folder, or leave it out: "
            "metrics.jsonl and tensorboard/ are written in any case",
        )


def open_all(folder: RunFolder, tracking: Mapping[str, Any]) -> dict[str, Tracker]:
    """Open the trackers of a run, those of its earlier attempts again.

    Args:
        folder: The run folder.
        tracking: The section of the configuration: which ones, and under which names.

    Returns:
        The trackers by their names.

    Raises:
        RunError: The library of one does not open it: no connection, a wrong key.
    """
    wanted = {name: opens for name, opens in TRACKERS.items() if tracking[name]}
    if not wanted:
        return {}
    known: dict[str, Any] = read_object(folder.tracking) if folder.tracking.exists() else {}
    place = folder.path / "tracking"
    place.mkdir(exist_ok=True)
    found = {}
    for name, opens in wanted.items():
        told = Opened(
            place,
            tracking["project"],
            tracking["name"] or folder.path.name,
            _hidden("", folder.read_config()),
            known.get(name),
        )
        try:
            found[name] = opens(told)
        except Exception as error:  # whatever its library raises
            raise RunError(
                f"tracking.{name}: its library cannot open the run: {error}",
                f"tracking.{name}=false leaves it out; docs/tracking.md has what it reads",
            ) from error
        known[name] = told.id
        atomic.write_text(folder.tracking, json.dumps(known, indent=2) + "\n")
    return found


def _hidden(name: str, value: Any) -> Any:
    """Return a value of a configuration without what looks like a key or a password."""
    if isinstance(value, dict):
        return {key: _hidden(f"{name}.{key}", each) for key, each in value.items()}
    if isinstance(value, list):
        return [_hidden(name, each) for each in value]
    return hide(name, value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List the leaves of a configuration as text, by dotted keys."""
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found
