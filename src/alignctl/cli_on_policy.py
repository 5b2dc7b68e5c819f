"""The commands that train a policy on its own answers: they take the same flags."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli_train import simulated_gpu, start
from alignctl.config.bounds import MOST
from alignctl.flags import (
    DryRunFlag,
    GpuMemoryFlag,
    MasterAddrFlag,
    MasterPortFlag,
    MaxRestartsFlag,
    NnodesFlag,
    NodeRankFlag,
    NoResumeFlag,
    NprocFlag,
    OutputFlag,
    OverridesArgument,
    PresetFlag,
    SimulateFlag,
    TokenizerFlag,
    example,
)
from alignctl.launch.nodes import NodeFlags


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    _add(
        app,
        "rlhf",
        """Align a policy by reinforcement learning (PPO) with a reward model.

        It answers prompts, the reward model scores the answers, and a value model says what was to
        be expected.
        """,
        "alignctl rlhf --preset llama2-7b --load runs/sft --reward-load runs/reward \\",
        "  --data data/prompts",
        "alignctl rlhf --preset llama2-70b --simulate",
    )
    _add(
        app,
        "online-dpo",
        """Align a policy by preferring the better ones of its own answers.

        Several answers to each prompt are scored by a reward model.
        """,
        "alignctl online-dpo --preset llama2-7b --load runs/sft --reward-load runs/reward \\",
        "  --data data/prompts pairs=all",
    )
    _add(
        app,
        "grpo",
        """Align a policy by comparing answers to one prompt with their mean (GRPO).

        Answers are scored by the rule that a row names, by a reward model, or by both.
        """,
        "alignctl grpo --preset llama2-7b --load runs/sft --data data/math",
        "alignctl grpo --preset llama2-7b --load runs/sft --data data/math \\",
        "  --reward-load runs/reward score.source=merge",
    )


def _add(app: typer.Typer, stage: str, text: str, *examples: str) -> None:
    """Adds the command of a stage: its name, what it says of itself, and command lines."""

    @app.command(stage, help=text, epilog=example(*examples))
    def train(
        context: typer.Context,
        preset: PresetFlag,
        load: Annotated[
            Path | None,
            typer.Option(
                "--load",
                "--policy-load",
                metavar="DIR",
                help="Policy to start from: Hugging Face, Megatron or a run.",
            ),
        ] = None,
        reward_load: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Reward model: Hugging Face, Megatron or a run."),
        ] = None,
        reward_load_iteration: Annotated[
            int | None,
            typer.Option(
                min=0, max=MOST, metavar="N", help="Which of its checkpoints; default: the newest."
            ),
        ] = None,
        data: Annotated[
            Path | None, typer.Option(metavar="PATH", help="Prompts: a file or a folder.")
        ] = None,
        validation_data: Annotated[
            Path | None, typer.Option(metavar="PATH", help="Held-out prompts: a file or a folder.")
        ] = None,
        tokenizer: TokenizerFlag = None,
        output: OutputFlag = None,
        nproc: NprocFlag = None,
        nnodes: NnodesFlag = None,
        node_rank: NodeRankFlag = None,
        master_addr: MasterAddrFlag = None,
        master_port: MasterPortFlag = None,
        max_restarts: MaxRestartsFlag = None,
        dry_run: DryRunFlag = False,
        simulate: SimulateFlag = False,
        gpu_memory: GpuMemoryFlag = None,
        no_resume: NoResumeFlag = False,
        overrides: OverridesArgument = None,
    ) -> None:
        flags = {
            "load": load,
            "reward_load": reward_load,
            "reward_load_iteration": reward_load_iteration,
            "data.train": data,
            "data.validation": validation_data,
            "tokenizer": tokenizer,
            "output": output,
            "launch.nproc_per_node": nproc,
            "launch.max_restarts": max_restarts,
        }
        nodes = NodeFlags(nnodes, node_rank, master_addr, master_port)
        start(
            stage,
            preset,
            flags,
            overrides,
            nodes,
            context,
            dry_run=dry_run,
            resume=not no_resume,
            simulated_gpu_gib=simulated_gpu(simulate, gpu_memory),
        )
