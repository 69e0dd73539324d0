"""Tells a caller without the server's libraries which extra brings them, instead of an import error."""

from __future__ import annotations

from importlib.util import find_spec

from pipeserve.errors import ConfigurationError

SERVER_LIBRARIES = ("arq", "fastapi", "redis", "structlog", "uvicorn")
MCP_LIBRARIES = ("mcp",)


def require_server() -> None:
    """Raise ConfigurationError unless the libraries that a service needs are installed."""
    _require(SERVER_LIBRARIES, "server")


def require_mcp() -> None:
    """Raise ConfigurationError unless the SDK of the Model Context Protocol is installed."""
    _require(MCP_LIBRARIES, "mcp")


def _require(libraries: tuple[str, ...], extra: str) -> None:
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"this command needs {', '.join(missing)}, which the extra {extra!r} brings: "
            f"pip install 'pipeserve[{extra}]'"
        )
