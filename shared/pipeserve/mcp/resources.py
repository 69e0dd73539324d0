"""What a job left, as resources: its record, result, log and explanation, single outputs, files, and what it shows."""

from __future__ import annotations

import base64
from typing import Any

from mcp_types import (
    BlobResourceContents,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)
from pydantic_core import to_json

from pipeserve.client import AsyncClient, AsyncJob
from pipeserve.errors import NotFoundError
from pipeserve.mcp.addresses import job_uri, parse_uri

NEWEST = 20
"""Jobs in a listing."""
_JSON = "application/json"
_TEXT = "text/plain"
TEMPLATES = [
    ResourceTemplate(uri_template="job://{id}", name="job", description="A job's record", mime_type=_JSON),
    ResourceTemplate(uri_template="job://{id}/result", name="result", description="Its outputs", mime_type=_JSON),
    ResourceTemplate(
        uri_template="job://{id}/logs", name="logs", description="What its steps printed and logged", mime_type=_TEXT
    ),
    ResourceTemplate(
        uri_template="job://{id}/explain", name="explain", description="Where its time went", mime_type=_TEXT
    ),
    ResourceTemplate(
        uri_template="job://{id}/outputs/{name}", name="output", description="One output", mime_type=_JSON
    ),
    ResourceTemplate(
        uri_template="job://{id}/artifacts/{name}", name="artifact", description="An output kept as a file"
    ),
    ResourceTemplate(
        uri_template="job://{id}/visualizations/{index}", name="visualization", description="What a step shows"
    ),
]


async def newest_jobs(client: AsyncClient) -> list[Resource]:
    """The newest jobs. Raises what the service answered."""
    return [
        Resource(
            uri=job_uri(job.job_id),
            name=job.run_name,
            description=f"{job.status.value}, of {job.created_at:%Y-%m-%d %H:%M:%S} UTC",
            mime_type=_JSON,
        )
        async for job in client.jobs(limit=NEWEST)
    ]


async def read(client: AsyncClient, uri: str) -> ReadResourceResult:
    """What is at ``uri``. Raises ValueError for one that nothing can be at, and what the service answered."""
    job_id, parts = parse_uri(uri)
    job = client.job(job_id)
    match parts:
        case []:
            return _json(uri, (await job.record()).model_dump(mode="json"))
        case ["result"]:
            return _json(uri, (await job.result()).outputs)
        case ["outputs", name]:
            return _json(uri, await _output(job, name))
        case ["logs"]:
            return _text(uri, "\n".join([_line(line) async for line in job.logs()]))
        case ["explain"]:
            return _text(uri, "\n".join((await job.explain()).get("summary", ())))
        case ["artifacts", name]:
            return _data(uri, "application/octet-stream", await job.artifact(name))
        case ["visualizations", index] if index.isascii() and index.isdigit():
            return await _visualization(uri, job, int(index))
        case _:
            raise ValueError(f"{uri!r}: a job has record, result, outputs, logs, explain, artifacts and visualizations")


async def _output(job: AsyncJob, name: str) -> Any:
    outputs = (await job.result()).outputs
    if name not in outputs:
        raise NotFoundError(f"job {job.job_id} has no output {name!r}; it has {', '.join(outputs) or 'none'}")
    return outputs[name]


async def _visualization(uri: str, job: AsyncJob, index: int) -> ReadResourceResult:
    data = await job.visualization(index)
    media_type = next(found.media_type for found in await job.visualizations() if found.index == index)
    return _data(uri, media_type, data)


def _line(line: Any) -> str:
    return f"{line.timestamp.isoformat()} {line.level.upper()} {line.step_name or '-'}: {line.message}"


def _json(uri: str, value: Any) -> ReadResourceResult:
    return _text(uri, to_json(value).decode(), _JSON)


def _text(uri: str, text: str, media_type: str = _TEXT) -> ReadResourceResult:
    return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=media_type, text=text)])


def _data(uri: str, media_type: str, data: bytes) -> ReadResourceResult:
    if media_type.startswith("text/"):
        return _text(uri, data.decode("utf-8", "replace"), media_type)
    blob = base64.b64encode(data).decode()
    return ReadResourceResult(contents=[BlobResourceContents(uri=uri, mime_type=media_type, blob=blob)])
