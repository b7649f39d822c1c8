"""All commands in one place, and what an error looks like at the end of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from safebench.cli import commands, evidence_commands
from safebench.cli.said import encode_anything, tell
from safebench.errors import SafebenchError
from safebench.telemetry import quiet
from safebench.user_code import blamed

REPORT = "This is a fault of safebench: please report it, with the lines above and the command, to its issue tracker."

app = typer.Typer(
    name="safebench",
    help="Compare SAFE with PPO: train, record, tabulate.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name, _command in (
    ("run", commands.run),
    ("compare", commands.compare),
    ("tune", commands.tune),
    ("report", evidence_commands.report),
    ("claims", evidence_commands.claims),
    ("list", commands.list_runs),
    ("show", commands.show),
    ("clean", commands.clean),
    ("experiments", commands.experiments),
    ("arms", commands.arms),
    ("models", commands.models),
    ("rewards", commands.rewards),
    ("doctor", commands.doctor),
    ("sample", commands.sample),
    ("export", commands.export),
    ("plot", evidence_commands.plot),
    ("diff", evidence_commands.diff),
    ("sensitivity", evidence_commands.sensitivity),
    ("keep", evidence_commands.keep),
    ("alarms", evidence_commands.alarms),
    ("rescore", evidence_commands.rescore),
    ("best-of-n", evidence_commands.best_of_n),
    ("import", evidence_commands.import_),
):
    app.command(_name)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"safebench {version('safebench')}")
        raise typer.Exit


@app.callback()
def _main(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of ours are said in two lines, without a traceback."""
    quiet()
    encode_anything()
    try:
        code = _code(app(args=arguments, prog_name="safebench", standalone_mode=False))
        sys.stdout.flush()
        return code
    except typer.TyperException as error:
        _show(error)
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except SafebenchError as error:
        tell(error)
        return error.exit_code
    except (BrokenPipeError, SystemExit) as error:
        # The reader of our output has left (safebench list | head): nothing is wrong. Typer makes an exit of it.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # What Python still wants to flush at its end goes nowhere, without a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:  # the last boundary: everything we did not foresee
        if (blame := blamed(error)) is not None:
            tell(blame)
            return blame.exit_code
        import traceback

        traceback.print_exc()
        print(REPORT, file=sys.stderr)
        return 1


def _show(error: typer.TyperException) -> None:
    """Write a fault of the command line itself; such errors carry the usage line of their command."""
    show = getattr(error, "show", None)
    if show is None:
        print(f"error: {error.format_message()}", file=sys.stderr)
    else:
        show(sys.stderr)


def _code(returned: Any) -> int:
    return returned if isinstance(returned, int) else 0
