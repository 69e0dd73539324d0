"""Options that several commands share, and how ``-p key=value`` is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
import typer
from pydantic_core import from_json

from pipeserve.errors import ConfigurationError
from pipeserve.jobs import JobStatus

DEFAULT_URL = "http://127.0.0.1:8001"


def _check_timeout(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise typer.BadParameter(f"{seconds:g} is not a number of seconds above 0.")
    return seconds


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, brackets that don't close
        good = False
    if not good:
        raise typer.BadParameter(f"{url!r} is not a service's address such as {DEFAULT_URL}.")
    return url


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
Timeout = Annotated[float | None, typer.Option(callback=_check_timeout, help="Seconds that the run may take.")]
Url = Annotated[str, typer.Option(envvar="PIPESERVE_URL", callback=_check_url, help="The service's address.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="PIPESERVE_API_KEY", help="The service's key.", show_envvar=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything, for programs.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="ID", help="The jobs' ids.", show_default=False)]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="A label; repeat as needed, all must be there."),
]
Status = Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")]
Code = Annotated[str | None, typer.Option(help="Only jobs that ended with an error of this code, such as worker_lost.")]


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


def parse_labels(given: Iterable[str] | None) -> dict[str, str]:
    """``name=value`` words as labels. Raises ConfigurationError for one that isn't such a word, or comes twice."""
    labels: dict[str, str] = {}
    for word in given or ():
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"--label {word!r}: write it as name=value")
        if name in labels:
            raise ConfigurationError(f"--label {name}: given twice")
        labels[name] = value
    return labels


def _value(key: str, text: str) -> Any:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigurationError(f"-p {key}: can't read {text[1:]}: {reason}") from None
    try:
        orjson.loads(text)  # the judge of what is JSON: the other takes numbers that no float can hold
    except orjson.JSONDecodeError:
        return text
    return from_json(text)  # keeps whole numbers of more than 64 bits
