"""The commands: each reads its flags, resolves them into one value and hands that to a stage.

Whatever takes time to import is imported inside a command, so that `--help` and a misspelt key are
answered at once.
"""

import importlib.util
import io
import os
import sys
from typing import Annotated

import typer

from alignctl import (
    __version__,
    cli_convert,
    cli_eval,
    cli_generate,
    cli_launch,
    cli_on_policy,
    cli_plan,
    cli_prepare,
    cli_presets,
    cli_report,
    cli_train,
    console,
)
from alignctl.atomic import is_disk_full
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.flags import example


def main() -> None:
    """Run the command line and exit: 2 for what the user got wrong, 1 for what went wrong here."""
    # Pydantic would look for plugins in the metadata of every installed distribution.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
    try:
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
    except Exception as error:
        code = console.report_bug(error)
    sys.exit(code)


def _about_file(error: OSError) -> AlignctlError:
    """A failure of the system's over a file or folder, which whoever named it can mend."""
    name = str(error.filename)
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    message = f"{shown}: {error.strerror or error}"
    return RunError(message) if is_disk_full(error) else UserError(message)


def _missing_library(error: ModuleNotFoundError) -> UserError | None:
    """What to install for a library that is not here; None where one of its modules is missing."""
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
    "deepspeed": "deepspeed",
    "lm_eval": "lm-eval",
    "openai": "mt-bench",
    "peft": "deepspeed",
    "tenacity": "mt-bench",
    "vllm": "rollout",
}
"""Where libraries come from that are not in the extra `cpu`."""

app = typer.Typer(
    name="alignctl",
    help="Prepare data, convert, train, align, ask and measure language models.",
    epilog=example(
        "alignctl convert-hf2mg --preset llama2-7b --load models/llama2-7b --save models/mg",
        "alignctl sft --preset llama2-7b --load models/mg --data data/sft optimizer.lr=1e-5",
        "alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/llama2-7b-sft",
    ),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_presets.app)
app.add_typer(cli_prepare.app)
app.add_typer(cli_launch.app)
cli_convert.register(app)
cli_train.register(app)
cli_on_policy.register(app)
cli_generate.register(app)
cli_eval.register(app)
cli_report.register(app)
cli_plan.register(app)


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


@app.command("doctor", epilog=example("alignctl doctor"))
def doctor() -> None:
    """Say what this machine lacks, and what mends it."""
    from alignctl.doctor import examine

    text, is_usable = examine()
    console.emit(text)
    raise typer.Exit(0 if is_usable else 1)
