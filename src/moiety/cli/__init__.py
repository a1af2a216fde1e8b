"""The front door: one command a deed. ``--help`` loads no torch."""

from __future__ import annotations

import gc
import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from moiety.cli import (
    anchors,
    auditing,
    bundles,
    demo,
    doctor,
    releases,
    screen,
    serving,
    studies,
    training,
    tuning,
    using,
)
from moiety.errors import MoietyError

DONE, REFUSED, INTERRUPTED = 0, 2, 130

# Newer typers carry their own copy of click, so its error class is found through typer's.
_CommandLineError: type[Any] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)

app = typer.Typer(
    name="moiety",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Language models made together by organisations that cannot share their text. "
    "Train an expert at home, merge experts of owners who never met, withdraw any of them exactly.",
)
OWNER, COORDINATOR, OPERATOR = "Owner", "Coordinator", "Operator"
USER, RESEARCHER = "Everybody", "Researcher"

app.add_typer(anchors.app, name="anchor", rich_help_panel=COORDINATOR)
app.command(rich_help_panel=OWNER)(training.train)
app.add_typer(bundles.keys, name="keys", rich_help_panel=OWNER)
app.command(rich_help_panel=OWNER)(auditing.audit)
app.command(rich_help_panel=OWNER)(bundles.pack)
app.add_typer(bundles.order, name="order", rich_help_panel=OWNER)
app.command(rich_help_panel=OWNER)(tuning.proxies)
app.command(rich_help_panel=USER)(bundles.verify)
app.command(rich_help_panel=COORDINATOR)(releases.merge)
app.command(rich_help_panel=COORDINATOR)(releases.withdraw)
app.command(rich_help_panel=COORDINATOR)(releases.admit)
app.command(rich_help_panel=COORDINATOR)(releases.export)
app.command("tune-router", rich_help_panel=COORDINATOR)(tuning.tune_router)
app.command(rich_help_panel=COORDINATOR)(tuning.untune)
app.command("eval", rich_help_panel=COORDINATOR)(using.eval_)
app.command(rich_help_panel=COORDINATOR)(using.attribute)
app.command(rich_help_panel=USER)(using.generate)
app.command(rich_help_panel=OPERATOR)(serving.serve)
app.command("serve-key", rich_help_panel=OPERATOR)(serving.serve_key)
app.add_typer(serving.usage, name="usage", rich_help_panel=OPERATOR)
app.command(rich_help_panel=RESEARCHER)(studies.study)
app.command(rich_help_panel=USER)(demo.demo)
app.command(rich_help_panel=USER)(doctor.doctor)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"moiety {version('moiety')}\n")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits 0 done, 1 an audit failed, 2 refused or bad input, 130 interrupted."""
    code = run(arguments)
    # Python ends with a search of all that lives for what nobody holds: seconds, where torch is.
    gc.freeze()
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; what went wrong is on stderr."""
    command = typer.main.get_command(app)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Not app(): it makes an interruption a bare exit code and loses what it says.
        with command.make_context("moiety", words) as context:
            code = command.invoke(context)
    except MoietyError as error:
        _show(error)
        return REFUSED
    except _CommandLineError as error:
        error.show()
        return REFUSED
    except typer.Exit as ending:
        return ending.exit_code
    except BrokenPipeError:
        # Who read our output has gone, as `head` does; the interpreter must not flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (KeyboardInterrupt, typer.Abort) as error:
        screen.note(f"interrupted: {error}" if str(error) else "interrupted")
        return INTERRUPTED
    return code if isinstance(code, int) else DONE


def _show(error: MoietyError) -> None:
    screen.note(f"error: {error.message}")
    if error.where:
        screen.note(f"  where:  {error.where}")
    if error.remedy:
        screen.note(f"  remedy: {error.remedy}")
