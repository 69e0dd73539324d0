"""Questions about the service itself, without any I/O."""

from __future__ import annotations

from typing import Any

from pipeserve.client._protocol import Reply, Request, json_object


def info_request() -> Request:
    """Ask what is deployed."""
    return Request("GET", "/info")


def parse_info(reply: Reply) -> dict[str, Any]:
    """The pipeline and the deployment. Raises what the service answered."""
    return json_object(reply, expected=(200,))
