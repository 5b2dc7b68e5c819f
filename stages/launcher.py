"""What the training stages do before a process is started: every input is looked at first."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignctl import atomic, console
from alignctl.config.load import section_of
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Role
from alignctl.data.tokenizer import Tokenizer, load_tokenizer
from alignctl.errors import AlignctlError, LostError, UserError
from alignctl.launch import local
from alignctl.launch.address import check_rendezvous, interface_towards
from alignctl.launch.attempt import Attempt, create_or_resume
from alignctl.launch.facts import facts
from alignctl.launch.job import Job, worker_environment
from alignctl.launch.nodes import Nodes
from alignctl.launch.peers import Peers
from alignctl.launch.run_folder import RunFolder
from alignctl.reporting.progress import display
from alignctl.reporting.rows_progress import RowsProgress

if TYPE_CHECKING:
    from alignctl.checkpoints.source import Source

_POINTER = "prepared"


def prepared_data(folder: RunFolder) -> Path:
    """The folder of prepared rows that a run reads, for `SFTData.open` or `PreferenceData.open`."""
    return folder.data / (folder.data / _POINTER).read_text(encoding="utf-8")


def job(config: TrainingConfig, nodes: Nodes) -> Job:
    """The torchrun job of a run, as this node starts it."""
    return Job(
        module=f"alignctl.stages.{section_of(config.stage)}",
        args=(str(config.output),),
        nproc=config.launch.nproc_per_node,
        nnodes=nodes.nnodes,
        node_rank=nodes.node_rank,
        master_addr=nodes.master_addr,
        master_port=nodes.master_port,
        env=worker_environment(config.launch.nproc_per_node, os.environ, nnodes=nodes.nnodes),
    )


def launch(
    config: TrainingConfig,
    prepare: Callable[["Source", Attempt], None],
    *,
    nodes: Nodes,
    dry_run: bool,
    resume: bool,
    roles: tuple[Role, ...] = ("policy",),
    beside: "Callable[[Any], dict[str, Source]] | None" = None,
) -> int:
    """Checks the inputs, opens the run folder, prepares the data and runs the job.

    Args:
        config: The resolved configuration.
        prepare: Brings into the run folder what the ranks are to read.
        nodes: This node's place among the others.
        dry_run: Only print each node's command and the configuration.
        resume: Whether a run folder that was started before may be continued.
        roles: What the stage can start from.
        beside: Checks and returns the models beside the one that is loaded, by their keys in the
            configuration. A stage that has such ones needs all of them again when it is resumed;
            others go on from their own checkpoint alone.

    Returns:
        The exit code, 0.

    Raises:
        UserError: An input is wrong; nothing was started, and no new folder is left behind.
        RunError: The job failed.
    """
    todo = job(config, nodes)
    if dry_run:
        _show(config, todo)
        return 0
    peers = None
    if nodes.nnodes > 1:
        settings = config.launch
        peers = Peers(
            RunFolder(config.output),
            nodes,
            settings.nproc_per_node,
            start_seconds=settings.start_timeout_seconds,
            silence_seconds=settings.node_timeout_seconds,
        )
    try:
        models = _check(config, nodes, roles, beside)
        if peers is not None:
            todo = _at_the_right_interface(todo)
        for restart in range(config.launch.max_restarts + 1):
            try:
                _attempt(config, prepare, models, todo, resume=resume or restart > 0, peers=peers)
                break
            except LostError as error:
                if restart == config.launch.max_restarts:
                    raise
                console.report(error)
                if peers is not None:
                    peers.disperse()
                console.say(f"restart {restart + 1} of {config.launch.max_restarts}")
    except AlignctlError as error:
        if peers is not None and config.output.is_dir():
            peers.cannot_start(error)
        raise
    return 0


def _show(config: TrainingConfig, todo: Job) -> None:
    """Prints each node's command and the configuration, and says what the command needs."""
    if (path := os.environ.get("PYTHONPATH")) is not None:
        todo = replace(todo, env=(*todo.env, ("PYTHONPATH", path)))
    for rank in range(todo.nnodes):
        console.emit(todo.on_node(rank).render())
    console.emit(config.model_dump_json(indent=2))
    ready = RunFolder(config.output).config.exists()
    where = f"goes on with the run in {config.output}" if ready else f"needs {config.output} first"
    notes = [
        f"the command {where}; without --dry-run, alignctl {config.stage} prepares that folder "
        "(config.json, rows), and starts the command itself"
    ]
    if todo.master_addr.startswith("$"):
        notes.append(f"set {todo.master_addr[1:]} to the address of node 0 before the command")
    console.note_all(notes)


def _check(
    config: TrainingConfig,
    nodes: Nodes,
    roles: tuple[Role, ...],
    beside: "Callable[[Any], dict[str, Source]] | None",
) -> "dict[str, Source]":
    """Looks at all that this node can know before the run folder is touched."""
    import torch

    from alignctl.checkpoints import origin
    from alignctl.checkpoints.preflight import (
        check_devices,
        check_engine,
        check_model,
        check_resumable,
    )

    folder = RunFolder(config.output)
    config = origin.settled(config, folder)
    found = beside(config) if beside else {}
    check_rendezvous(nodes)
    check_engine(config)
    check_devices(config, torch.cuda.device_count())
    checkpoint = None if beside else folder.latest_checkpoint()
    found["load"] = check_model(config, roles=roles, checkpoint=checkpoint)
    check_resumable(config, folder)
    return found


def _at_the_right_interface(todo: Job) -> Job:
    """Tells Gloo the network interface by which node 0 is reached, unless the user did."""
    interface = interface_towards(todo.master_addr)
    if interface is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return todo
    return replace(todo, env=(*todo.env, ("GLOO_SOCKET_IFNAME", interface)))


def _attempt(
    config: TrainingConfig,
    prepare: Callable[["Source", Attempt], None],
    models: "dict[str, Source]",
    todo: Job,
    *,
    resume: bool,
    peers: Peers | None,
) -> None:
    """One start of the job, to its end."""
    from alignctl.models.adapters import describe

    folder = RunFolder(config.output)
    if peers is not None and todo.node_rank > 0:
        console.say(f"waiting for node 0 to open {folder.path}")
        peers.enter(facts(config, folder))
    with create_or_resume(
        config.output, config, argv=sys.argv, resume=resume, node_rank=todo.node_rank
    ) as attempt:
        if attempt.state != "finished":
            console.say(f"model: {models['load'].description}")
            if config.lora is not None:
                console.say(describe(config.model, config.lora))
            if peers is not None:
                console.say(f"rendezvous: {todo.describe_rendezvous()}")
            if todo.node_rank == 0:
                _make_ready(prepare, config, models, attempt, peers)
        local.run(todo, attempt, display(), peers)


def _make_ready(
    prepare: Callable[["Source", Attempt], None],
    config: TrainingConfig,
    models: "dict[str, Source]",
    attempt: Attempt,
    peers: Peers | None,
) -> None:
    """Node 0 waits for the others, prepares what all are to read, and lets them start.

    A new run folder is taken back when the rows, or another node, turn out to be wrong.
    """
    from alignctl.checkpoints import origin

    try:
        if peers is not None:
            others = peers.nodes.nnodes - 1
            console.say(f"waiting for {others} other node{'s' if others > 1 else ''} to join")
            peers.gather(facts(config, attempt.folder))
        with nullcontext() if peers is None else peers.beating():
            for path in origin.hold(config, attempt.folder, models):
                console.say(
                    f"warning: {path} cannot be marked as needed by this run: take care that the "
                    "run it belongs to does not remove it (its checkpoint.keep)"
                )
            attempt.folder.data.mkdir(exist_ok=True)
            prepare(origin.with_own_files(models["load"], attempt.folder), attempt)
            origin.keep(config, attempt.folder, models)
        if peers is not None:
            peers.start()
    except AlignctlError as error:
        if peers is not None:
            peers.cannot_start(error)
            peers.settle()
        if attempt.state == "new":
            shutil.rmtree(attempt.folder.path)
        raise


def prepare_rows(
    prepare: Callable[..., Path], config: TrainingConfig, source: "Source", attempt: Attempt
) -> Path:
    """Tokenises the rows of a run.

    Args:
        prepare: `prepare` of `alignctl.data.sft` or of `alignctl.data.preferences`.
        config: The run.
        source: Its model, which may have the tokenizer.
        attempt: The run folder.

    Returns:
        The prepared folder, which `prepared_data` finds from now on.

    Raises:
        UserError: For whatever is wrong with the rows, or when they are no longer those that the
            run was started with.
    """
    tokenizer = open_tokenizer(config, source, attempt.folder)
    data: Any = config.data
    progress = RowsProgress("tokenising")
    folder = prepare(data, config.batch.seq_length, tokenizer, attempt.folder.data, progress)
    choose_data(folder, f"{config.data.train}: the rows", attempt)
    return folder


def open_tokenizer(config: TrainingConfig, source: "Source", folder: RunFolder) -> Tokenizer:
    """The tokenizer of a run: the copy that it keeps, once it has been started."""
    from alignctl.checkpoints import origin

    return load_tokenizer(source.tokenizer_folder(origin.settled(config, folder).tokenizer))


def choose_data(folder: Path, what: str, attempt: Attempt) -> None:
    """Has the ranks of a run read a prepared folder, which `prepared_data` finds from now on.

    Args:
        folder: The folder, in the run's own of data.
        what: What it was prepared from.
        attempt: The run folder.

    Raises:
        UserError: The run has steps behind it that read another one.
    """
    pointer = attempt.folder.data / _POINTER
    before = pointer.read_text(encoding="utf-8") if pointer.exists() else folder.name
    if before != folder.name and attempt.folder.latest_step():
        raise UserError(
            f"{what} or the tokenizer have changed since this run was started: its steps would "
            "not be those of the data it began with",
            f"put them back, or start a new run: --load {attempt.folder.path} --output NEW",
        )
    atomic.write_text(pointer, folder.name)
