"""The ``pipeserve`` command: its parts put together, and errors put into one sentence."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeserve.cli import deploy, foreground, invoke, jobs, keys, mcp, serve
from pipeserve.cli import run as running
from pipeserve.errors import (
    BadRequestError,
    ConfigurationError,
    DefinitionError,
    IdempotencyMismatchError,
    InvalidParametersError,
    PipeserveError,
    TargetError,
)

FAILED = 1
USAGE = 2
_USAGE_ERRORS = (
    BadRequestError,
    ConfigurationError,
    DefinitionError,
    IdempotencyMismatchError,
    InvalidParametersError,
    TargetError,
)
"""What the caller of the command got wrong; all else is a failure of what was asked for."""


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit()


def version() -> None:
    """Print the version of pipeserve."""
    from pipeserve import __version__

    sys.stdout.write(f"pipeserve {__version__}\n")


def build_app() -> typer.Typer:
    """The command line, as a typer application."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        # A traceback of ours is for a bug report; typer's boxes would print the values of variables with it.
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def pipeserve(
        _version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        """Serve typed Python pipelines over HTTP: synchronous calls, durable jobs, live event streams.

        TARGET is package.module:pipeline or path/file.py:pipeline.
        """

    del pipeserve  # registered by its decorator
    app.command()(serve.serve)
    app.command()(running.run)
    app.command()(invoke.invoke)
    app.add_typer(jobs.build_app(), name="jobs")
    app.add_typer(keys.build_app(), name="keys")
    app.command()(deploy.deploy)
    app.command()(deploy.deployments)
    app.command()(foreground.api)
    app.command()(foreground.worker)
    app.command()(mcp.mcp)
    app.command()(version)
    return app


def run() -> None:
    """The entry point. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    try:
        build_app()(prog_name="pipeserve")
    except PipeserveError as error:
        sys.stderr.write(f"pipeserve: {error}\n")
        sys.exit(USAGE if isinstance(error, _USAGE_ERRORS) else FAILED)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        sys.stderr.close()
        sys.exit(FAILED)
