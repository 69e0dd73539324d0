"""Tells a caller without the server's libraries which extra brings them, instead of an import error."""

from __future__ import annotations

from importlib.util import find_spec

from pipeserve.errors import ConfigurationError

SERVER_LIBRARIES = ("arq", "fastapi", "redis", "structlog", "uvicorn")


def require_server() -> None:
    """Raise ConfigurationError unless the libraries that a service needs are installed."""
    missing = [name for name in SERVER_LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"this command needs {', '.join(missing)}, which the extra 'server' brings: pip install 'pipeserve[server]'"
        )
