"""What is kept beside a job's record, without any I/O: what its steps show, and outputs too large for the record."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from pipeserve.client._protocol import Reply, Request, error_of, json_object, unexpected
from pipeserve.client.visualization import Visualization


def visualizations_request(job_id: str) -> Request:
    """Ask what a job shows."""
    return Request("GET", f"/jobs/{quote(job_id, safe='')}/visualizations")


def visualization_request(job_id: str, index: int) -> Request:
    """One visualization's bytes."""
    return Request("GET", f"/jobs/{quote(job_id, safe='')}/visualizations/{index}")


def artifact_request(job_id: str, name: str) -> Request:
    """An artifact's bytes."""
    return Request("GET", f"/jobs/{quote(job_id, safe='')}/artifacts/{quote(name, safe='')}")


def parse_visualizations(reply: Reply) -> list[Visualization]:
    """The list. Raises what the service answered."""
    raw = json_object(reply, expected=(200,))
    try:
        return [_visualization(entry) for entry in raw["visualizations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise unexpected(reply, f"it is no list of visualizations ({error})") from None


def parse_bytes(reply: Reply) -> bytes:
    """The body as it is. Raises what the service answered."""
    if reply.status != 200:
        raise error_of(reply)
    return reply.body


def _visualization(raw: dict[str, Any]) -> Visualization:
    return Visualization(
        index=int(raw["index"]),
        name=str(raw["name"]),
        media_type=str(raw["media_type"]),
        size=int(raw["size"]),
        step_name=raw.get("step_name"),
    )
