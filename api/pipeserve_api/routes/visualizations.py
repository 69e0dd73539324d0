"""What a job's steps show: HTML, Markdown and images, as the bytes that were drawn."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Path
from starlette.responses import Response

from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.models import VisualizationList
from pipeserve_api.openapi import problems

router = APIRouter(tags=["jobs"])
JSON = "application/json"
_HEADERS = {
    # What a step shows may hold what its caller sent: no script of it runs, and it reaches nothing.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "cache-control": "private, max-age=60",
}


@router.get(
    "/jobs/{job_id}/visualizations",
    response_model=VisualizationList,
    responses=problems(404, 503),
    summary="List what a job shows",
)
async def list_visualizations(job_id: str, services: ServicesDep, jobs: JobsDep) -> Response:
    """In the order in which they were drawn. Empty where the pipeline does not capture visualizations."""
    await jobs.get(job_id)
    found = [
        {
            "index": attachment.index,
            "name": attachment.name,
            "step_name": attachment.step_name,
            "media_type": attachment.media_type,
            "size": len(attachment.data),
            "href": f"/jobs/{job_id}/visualizations/{attachment.index}",
        }
        for attachment in await jobs.visualizations(job_id)
    ]
    return Response(orjson.dumps({"visualizations": found}), media_type=JSON)


@router.get(
    "/jobs/{job_id}/visualizations/{index}",
    response_class=Response,
    responses={
        200: {"description": "The bytes", "content": {"text/html": {}, "text/markdown": {}, "image/png": {}}},
        **problems(404, 422, 503),
    },
    summary="Show one",
)
async def get_visualization(
    job_id: str, index: Annotated[int, Path(ge=1, le=2**31)], services: ServicesDep, jobs: JobsDep
) -> Response:
    """With its media type, and a policy by which a browser runs no script in it."""
    await jobs.get(job_id)
    attachment = await jobs.visualization(job_id, index)
    charset = "; charset=utf-8" if attachment.media_type.startswith("text/") else ""
    return Response(attachment.data, headers=_HEADERS | {"content-type": attachment.media_type + charset})
