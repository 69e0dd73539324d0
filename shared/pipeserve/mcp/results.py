"""A completed job as a tool's result: its outputs as JSON, twice (for programs and as text), and what its steps show.

A result goes into a model's context, so it is bounded. What is left out is named, with the address to read it at.
"""

from __future__ import annotations

import base64
from typing import Any, cast

from jsonschema import Draft202012Validator
from mcp_types import (
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from pydantic_core import to_json

from pipeserve.client import AsyncJob, Result, Visualization
from pipeserve.mcp.addresses import job_uri

MOST_TEXT = 64 * 1024
"""Bytes of JSON in one result, all outputs together."""
MOST_SHOWN = 8
"""Visualizations in one result; the others are links."""
LARGEST_SHOWN = 1024 * 1024
"""Bytes of an image. Clients refuse larger ones."""


def completed(result: Result, schema: dict[str, Any] | None) -> CallToolResult:
    """The outputs. ``schema``: that of the tool's result, which they keep to; None: the tool has none."""
    kept, notes, links = _select(result)
    if schema is not None:
        for name in _misfits(kept, schema):
            notes.append(f"Output {name!r} is not of its declared form: {to_json(kept.pop(name)).decode()}")
    content: list[ContentBlock] = [TextContent(text=to_json(kept).decode())]
    if notes:
        content.append(TextContent(text="\n".join(notes)))
    return CallToolResult(
        content=[*content, *links], structured_content=kept, _meta={"pipeserve/job_id": result.job_id}
    )


async def shown(job: AsyncJob) -> list[ContentBlock]:
    """What the job's steps show: images as images, Markdown as text, HTML as a resource; large ones as links."""
    blocks: list[ContentBlock] = []
    for visualization in await job.visualizations():
        if len(blocks) < MOST_SHOWN and visualization.size <= _limit(visualization.media_type):
            data = await job.visualization(visualization.index)
            blocks.append(_block(job.job_id, visualization, data))
        else:
            blocks.append(_link(job.job_id, visualization))
    return blocks


def _select(result: Result) -> tuple[dict[str, Any], list[str], list[ContentBlock]]:
    """The outputs that fit, sentences about the others, and links to these."""
    kept: dict[str, Any] = {}
    notes: list[str] = []
    links: list[ContentBlock] = []
    room = MOST_TEXT
    for name, value in result.outputs.items():
        artifact = artifact_of(value)
        size = len(to_json(value))
        if artifact is not None:
            notes.append(f"Output {name!r} is kept as a file of {artifact['size']} bytes: read it at the link.")
            links.append(_artifact_link(result.job_id, name, artifact))
        elif size > room:
            notes.append(f"Output {name!r} is left out, as its JSON has {size} bytes: read it at the link.")
            links.append(
                ResourceLink(uri=job_uri(result.job_id, "outputs", name), name=name, mime_type="application/json")
            )
        else:
            kept[name] = value
            room -= size
    return kept, notes, links


def artifact_of(value: Any) -> dict[str, Any] | None:
    """What ``value`` says of an artifact, if it stands for one."""
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) != 1:
        return None
    artifact = cast("dict[str, Any]", value).get("$artifact")
    if not isinstance(artifact, dict):
        return None
    told = cast("dict[str, Any]", artifact)
    return told if {"name", "size", "media_type"} <= told.keys() else None


def _misfits(outputs: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """The outputs that do not keep to the schema: a client would refuse the whole result for one of them."""
    errors: list[Any] = list(Draft202012Validator(schema).iter_errors(outputs))  # pyright: ignore[reportUnknownMemberType]  # no types
    return sorted({str(error.absolute_path[0]) for error in errors if error.absolute_path})


def _artifact_link(job_id: str, name: str, artifact: dict[str, Any]) -> ResourceLink:
    return ResourceLink(
        uri=job_uri(job_id, "artifacts", artifact["name"]),
        name=artifact["name"],
        description=f"Output {name}",
        mime_type=artifact["media_type"],
        size=artifact["size"],
    )


def _limit(media_type: str) -> int:
    return LARGEST_SHOWN if media_type.startswith("image/") else MOST_TEXT


def _block(job_id: str, visualization: Visualization, data: bytes) -> ContentBlock:
    media_type = visualization.media_type
    if media_type.startswith("image/"):
        return ImageContent(data=base64.b64encode(data).decode(), mime_type=media_type)
    text = data.decode("utf-8", "replace")
    if media_type == "text/markdown":
        return TextContent(text=text)
    uri = job_uri(job_id, "visualizations", visualization.index)
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=media_type, text=text))


def _link(job_id: str, visualization: Visualization) -> ResourceLink:
    return ResourceLink(
        uri=job_uri(job_id, "visualizations", visualization.index),
        name=visualization.name,
        mime_type=visualization.media_type,
        size=visualization.size,
    )
