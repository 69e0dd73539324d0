"""``pipeserve keys``: API keys for ``PIPESERVE_KEYS_FILE``."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from pipeserve.cli.output import write_json
from pipeserve.errors import ConfigurationError
from pipeserve.key_file import DEFAULT_SCOPES, KeyScope, new_key, read_key_file, stanza

_DEFAULT_SCOPES = list(DEFAULT_SCOPES)
_File = Annotated[Path, typer.Option(envvar="PIPESERVE_KEYS_FILE", help="The TOML file of keys.")]


def build_app() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(no_args_is_help=True, help="Make and list the API keys of a service.")
    app.command("new")(new)
    app.command("list")(list_keys)
    return app


def new(
    name: Annotated[str, typer.Argument(help="Whose key it is. Another key with this name sees the same jobs.")],
    file: _File,
    scope: Annotated[list[KeyScope], typer.Option(help="What it opens; once for each.")] = _DEFAULT_SCOPES,
    expires: Annotated[datetime | None, typer.Option(help="When it opens nothing any more, in UTC.")] = None,
) -> None:
    """Add a key to the file, which keeps its digest only, and print the key: nobody can show it again."""
    key = new_key()
    there = file.exists()
    if there:
        read_key_file(file)  # so that a broken file is not made longer
    try:
        lines = stanza(name, key, list(dict.fromkeys(scope)), expires)
    except ValueError as error:
        raise typer.BadParameter(f"{name!r}: {error}") from None
    try:
        # Whoever may read it learns the names and scopes of callers, so it is its owner's alone.
        with open(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w", encoding="utf-8") as stream:
            stream.write("\n" + lines if there else lines)
    except OSError as error:
        raise ConfigurationError(f"{file}: can't be written: {error.strerror}") from None
    read_key_file(file)
    sys.stdout.write(key + "\n")


def list_keys(file: _File, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the keys in the file: name, scopes, end, and the first digits of the digest."""
    entries = read_key_file(file)
    if as_json:
        write_json([entry.model_dump(mode="json") for entry in entries])
        return
    for entry in entries:
        ends = "" if entry.expires is None else entry.expires.isoformat()
        digits = entry.hash.removeprefix("sha256:")[:12]
        sys.stdout.write("\t".join((entry.name, ",".join(sorted(entry.scopes)), digits, ends)) + "\n")
