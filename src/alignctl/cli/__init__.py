"""The command line: each command reads its flags into one value and hands that to a stage."""

import importlib.util
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from typing_extensions import override

from alignctl import __version__, console
from alignctl.atomic import is_disk_full
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN, LazyGroup
from alignctl.config.stages import NAMES, SECTIONS
from alignctl.errors import AlignctlError, RunError, UserError


def main() -> None:
    """Run the command line and exit: 2 for what the user got wrong, 1 for what went wrong here."""
    # Pydantic would look for plugins in the metadata of every installed distribution.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # who calls has closed it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
    try:
        _check_folder()
        code = app(standalone_mode=False)
    except AlignctlError as error:
        code = console.report(error)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "alignctl"
        code = console.explain(error.format_message(), f"{command} --help", error.exit_code)
    except ModuleNotFoundError as error:
        missing = _missing_library(error)
        code = console.report(missing) if missing else console.report_bug(error)
    except typer.Abort:
        code = 130
    except OSError as error:
        code = console.report(_about_file(error)) if error.filename else console.report_bug(error)
    except RuntimeError as error:
        # What pathlib makes of links that go round in a circle, up to Python 3.12.
        is_loop = "Symlink loop" in str(error)
        code = console.report(UserError(str(error))) if is_loop else console.report_bug(error)
    except Exception as error:
        code = console.report_bug(error)
    sys.exit(code)


def _check_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the folder that you are in was removed", "cd to another one") from error


def _about_file(error: OSError) -> AlignctlError:
    """Make an error of the system's failure over a file or folder, which the user can mend."""
    name = str(error.filename)
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    message = f"{shown}: {error.strerror or error}"
    return RunError(message) if is_disk_full(error) else UserError(message)


def _missing_library(error: ModuleNotFoundError) -> UserError | None:
    """Say what to install for a library that is not here; None if only its module is missing."""
    name = (error.name or "alignctl").partition(".")[0]
    if importlib.util.find_spec(name) is not None:
        return None
    extra = _EXTRAS.get(name, "cpu")
    return UserError(
        f"this command needs {name}, which is not installed",
        f"pip install -e '.[{extra}]' in alignctl's folder; README.md (Install) has the whole "
        "command, alignctl doctor tells what else is missing",
    )


_EXTRAS = {
    "datasets": "hub",
    "deepspeed": "deepspeed",
    "lm_eval": "lm-eval",
    "openai": "mt-bench",
    "peft": "deepspeed",
    "tenacity": "mt-bench",
    "vllm": "rollout",
}
"""Where libraries come from that are not in the extra `cpu`."""


class Root(LazyGroup):
    """All commands: those of stages are made from what a stage is."""

    chapters: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Data and models": {
            "presets": "alignctl.cli.presets",
            "prepare": "alignctl.cli.prepare",
            "convert-hf2mg": "alignctl.cli.convert.hf2mg",
            "convert-mg2hf": "alignctl.cli.convert.mg2hf",
            "convert-mg2mg": "alignctl.cli.convert.mg2mg",
            "verify": "alignctl.cli.convert.verify",
        },
        "Training": {
            name: f"alignctl.stages.{section}"
            for name, section in zip(NAMES, SECTIONS, strict=True)
        },
        "Answers and measures": {
            "generate": "alignctl.cli.generate",
            "eval": "alignctl.cli.eval",
            "rewards": "alignctl.cli.rewards",
            "report": "alignctl.cli.report",
        },
        "Machines": {
            "plan": "alignctl.cli.plan",
            "launch": "alignctl.cli.launch",
            "doctor": "alignctl.cli.doctor",
            "completion": "alignctl.cli.completion",
        },
    }

    @override
    def load_app(self, module: str) -> typer.Typer:
        if not module.startswith("alignctl.stages."):
            return super().load_app(module)
        from alignctl.cli.train import make_app
        from alignctl.stages.shared.stage import load_stage

        return make_app(load_stage(module.rpartition(".")[2]))


app = typer.Typer(
    name="alignctl",
    help="Prepare data, convert, train, align, ask and measure language models.",
    epilog=example(
        "alignctl convert-hf2mg --preset llama2-7b --load models/llama2-7b --save models/mg",
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        "alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/llama2-7b-sft",
    ),
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    **PLAIN,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.emit(f"alignctl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.emit(context.get_help())
