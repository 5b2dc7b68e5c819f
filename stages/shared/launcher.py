"""What a stage does before a process is started: every input is looked at first."""

import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from alignctl import console
from alignctl.checkpoints import origin
from alignctl.checkpoints.preflight import (
    check_devices,
    check_engine,
    check_model,
    check_resumable,
)
from alignctl.checkpoints.source import Source
from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.run import TrainingConfig
from alignctl.data.tokenizer import load_tokenizer
from alignctl.errors import AlignctlError, LostError
from alignctl.launch import local
from alignctl.launch.address import check_rendezvous, interface_towards
from alignctl.launch.attempt import Attempt, create_or_resume
from alignctl.launch.fingerprint import fingerprint
from alignctl.launch.job import Job, worker_environment
from alignctl.launch.nodes import Nodes
from alignctl.launch.peers import Peers
from alignctl.models.adapters import describe
from alignctl.reporting import trackers
from alignctl.reporting.progress.alive import alive
from alignctl.reporting.progress.run import display
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.ending import tell_run
from alignctl.stages.shared.other_models import open_others
from alignctl.stages.shared.own_rewards import keep_sources
from alignctl.stages.shared.prepared import choose_data, prepared_data
from alignctl.stages.shared.rows import KINDS, require_held_out
from alignctl.stages.shared.stage import Stage


def build_job(stage: Stage[Any], config: TrainingConfig, nodes: Nodes) -> Job:
    """Build the torchrun job of a run, as this node starts it."""
    return Job(
        module=stage.module,
        args=(str(config.output),),
        nproc=config.launch.nproc_per_node,
        nnodes=nodes.nnodes,
        node_rank=nodes.node_rank,
        master_addr=nodes.master_addr,
        master_port=nodes.master_port,
        env=worker_environment(config.launch.nproc_per_node, os.environ, nnodes=nodes.nnodes),
    )


def launch(
    stage: Stage[Any], config: TrainingConfig, *, nodes: Nodes, dry_run: bool, resume: bool
) -> int:
    """Check the inputs, open the run folder, prepare the data and run the job.

    Args:
        stage: The stage.
        config: Its resolved configuration.
        nodes: This node's place among the others.
        dry_run: Only print each node's command and the configuration.
        resume: Whether a run folder that was started before may be continued.

    Returns:
        The exit code, 0.

    Raises:
        UserError: An input is wrong; nothing was started, and no new folder is left behind.
        RunError: The job failed.
    """
    todo = build_job(stage, config, nodes)
    if dry_run:
        _show(config, todo)
        return 0
    started = time.monotonic()
    peers = _find_peers(config, nodes) if nodes.nnodes > 1 else None
    try:
        console.say(f"{stage.name}: checking the inputs")
        with alive("checking the inputs"):
            models = _check(stage, config, nodes)
        if peers is not None:
            todo = _at_the_right_interface(todo)
        for restart in range(config.launch.max_restarts + 1):
            try:
                again = resume or restart > 0
                is_new = _attempt(stage, config, models, todo, resume=again, peers=peers)
                break
            except LostError as error:
                if restart == config.launch.max_restarts:
                    raise
                console.report(error)
                if peers is not None:
                    with alive("waiting for the other nodes"):
                        peers.wait_for_release()
                console.say(f"restart {restart + 1} of {config.launch.max_restarts}")
    except AlignctlError as error:
        if peers is not None and config.output.is_dir():
            peers.cannot_start(error)
        raise
    if nodes.node_rank == 0:
        tell_run(stage, config, time.monotonic() - started if is_new else None)
    return 0


def _find_peers(config: TrainingConfig, nodes: Nodes) -> Peers:
    settings = config.launch
    return Peers(
        RunFolder(config.output),
        nodes,
        settings.nproc_per_node,
        start_seconds=settings.start_timeout_seconds,
        silence_seconds=settings.node_timeout_seconds,
    )


def _show(config: TrainingConfig, todo: Job) -> None:
    """Print each node's command and the configuration, and say what the command needs."""
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


def _check(stage: Stage[Any], config: TrainingConfig, nodes: Nodes) -> dict[str, Source]:
    """Look at all that this node can know before the run folder is touched."""
    trackers.check(config.tracking.names)
    import torch  # a second and more, which is saved where something is wrong before this

    folder = RunFolder(config.output)
    config = origin.settled(config, folder)
    # A run that samples needs the models beside its policy again when it is resumed; others go on
    # from their own checkpoint alone.
    found = open_others(config) if is_on_policy(config) else {}
    check_rendezvous(nodes)
    check_engine(config)
    check_devices(config, torch.cuda.device_count())
    checkpoint = None if is_on_policy(config) else folder.latest_checkpoint()
    found["load"] = check_model(config, roles=stage.starts_from, checkpoint=checkpoint)
    check_resumable(config, folder)
    return found


def _at_the_right_interface(todo: Job) -> Job:
    """Tell Gloo the network interface by which node 0 is reached, unless the user did."""
    interface = interface_towards(todo.master_addr)
    if interface is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return todo
    return replace(todo, env=(*todo.env, ("GLOO_SOCKET_IFNAME", interface)))


def _attempt(
    stage: Stage[Any],
    config: TrainingConfig,
    models: dict[str, Source],
    todo: Job,
    *,
    resume: bool,
    peers: Peers | None,
) -> bool:
    """Start the job once, and see it to its end; tell whether there was anything to do."""
    folder = RunFolder(config.output)
    if peers is not None and todo.node_rank > 0:
        console.say(f"waiting for node 0 to open {folder.path}")
        with alive("waiting for node 0"):
            peers.enter(fingerprint(config, folder))

    def check_longer() -> None:
        if folder.latest_step():
            KINDS[stage.rows].check_longer(config, prepared_data(folder))

    with create_or_resume(
        config.output,
        config,
        argv=sys.argv,
        resume=resume,
        node_rank=todo.node_rank,
        check_longer=check_longer,
    ) as attempt:
        if attempt.state != "finished":
            console.say(f"model: {models['load'].description}")
            if config.lora is not None:
                console.say(describe(config.model, config.lora))
            if peers is not None:
                console.say(f"rendezvous: {todo.describe_rendezvous()}")
            if todo.node_rank == 0:
                with alive("preparing"):
                    _make_ready(stage, config, models, attempt, peers)
        local.run(todo, attempt, display(), peers)
    return attempt.state != "finished"


def _make_ready(
    stage: Stage[Any],
    config: TrainingConfig,
    models: dict[str, Source],
    attempt: Attempt,
    peers: Peers | None,
) -> None:
    """Wait, as node 0, for the others, prepare what all are to read, and let them start.

    A new run folder is taken back when the rows, or another node, turn out to be wrong.
    """
    try:
        if peers is not None:
            others = peers.nodes.nnodes - 1
            console.say(f"waiting for {others} other node{'s' if others > 1 else ''} to join")
            peers.gather(fingerprint(config, attempt.folder))
        with nullcontext() if peers is None else peers.beating():
            for path in origin.hold(config, attempt.folder, models):
                console.say(
                    f"warning: {path} cannot be marked as needed by this run: take care that the "
                    "run it belongs to does not remove it (its checkpoint.keep)"
                )
            attempt.folder.data.mkdir(exist_ok=True)
            source = origin.with_own_files(models["load"], attempt.folder)
            _prepare(stage, config, source, attempt)
            if is_on_policy(config):
                keep_sources(config.score.functions, attempt)
            origin.keep(config, attempt.folder, models)
        if peers is not None:
            peers.start()
    except AlignctlError as error:
        if peers is not None:
            peers.cannot_start(error)
            peers.wait_for_others()
        if attempt.state == "new":
            shutil.rmtree(attempt.folder.path)
        raise


def _prepare(stage: Stage[Any], config: TrainingConfig, source: Source, attempt: Attempt) -> None:
    """Bring into the run folder what the ranks are to read, and say what it is.

    The tokenizer is the copy that the run keeps, once it has been started.

    Raises:
        UserError: For whatever is wrong with the data, or when they are no longer those that the
            run was started with.
    """
    kind = KINDS[stage.rows]
    settled = origin.settled(config, attempt.folder)
    tokenizer = load_tokenizer(source.tokenizer_folder(settled.tokenizer))
    folder = kind.prepare(config, tokenizer, attempt.folder.data)
    choose_data(folder, kind.what.format(train=config.data.name), attempt, kind.goes_on)
    require_held_out(config, kind, folder)
    for line in kind.describe(config, folder):
        console.say(line)
    stage.after_rows(config, source, attempt)
