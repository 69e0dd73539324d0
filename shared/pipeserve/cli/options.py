"""Options that several commands share, and how ``-p key=value`` is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from pipeserve.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8001"

Target = Annotated[str, typer.Argument(metavar="TARGET", help="package.module:pipeline or path/file.py:pipeline")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="KEY=VALUE",
        help="A parameter; repeat as needed. VALUE is JSON, or else a string as it stands; @FILE reads it from a file.",
    ),
]
Url = Annotated[str, typer.Option(envvar="PIPESERVE_URL", help="The service's address.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="PIPESERVE_API_KEY", help="The service's key.", show_envvar=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything, for programs.")]


def parse_parameters(given: Iterable[str] | None) -> dict[str, Any]:
    """``key=value`` words as parameters. Raises ConfigurationError for one that isn't such a word, or comes twice."""
    parameters: dict[str, Any] = {}
    for word in given or ():
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise ConfigurationError(f"-p {word!r}: write it as key=value")
        if key in parameters:
            raise ConfigurationError(f"-p {key}: given twice")
        parameters[key] = _value(key, text)
    return parameters


def _value(key: str, text: str) -> Any:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigurationError(f"-p {key}: can't read {text[1:]}: {reason}") from None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
