"""``POST /jobs/{id}/token``: lets a browser, or whoever has the link, read one job without a key."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import orjson
from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from pipeserve.events import rfc3339
from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.openapi import problems

router = APIRouter(tags=["jobs"])
MAX_SECONDS = 604_800


class TokenTerms(BaseModel):
    """For how long a token is wanted."""

    model_config = ConfigDict(extra="forbid")

    expires_in: float | None = Field(
        None,
        strict=True,
        ge=1,
        le=MAX_SECONDS,
        allow_inf_nan=False,
        description="Seconds; if not given, PIPESERVE_TOKEN_TTL.",
    )


class TokenLinks(BaseModel):
    """What the token opens, with it."""

    self: str
    events: str
    stream: str


class JobToken(BaseModel):
    """Reads one job."""

    token: str = Field(description="For ?token=, or Authorization: Bearer")
    job_id: str
    expires_at: datetime
    links: TokenLinks


@router.post(
    "/jobs/{job_id}/token",
    response_model=JobToken,
    responses=problems(400, 403, 404, 422, 503),
    summary="Make a token that reads a job",
)
async def make_token(
    job_id: str, services: ServicesDep, jobs: JobsDep, terms: Annotated[TokenTerms | None, Body()] = None
) -> Response:
    """Whoever has it may read this job, all of it, until it expires; and nothing else."""
    job = await jobs.get(job_id)
    wanted = None if terms is None else terms.expires_in
    token = services.tokens.sign(job.job_id, services.settings.service.token_ttl if wanted is None else wanted)
    body = {
        "token": token.text,
        "job_id": job.job_id,
        "expires_at": rfc3339(token.expires_at),
        "links": {
            "self": f"/jobs/{job.job_id}?token={token.text}",
            "events": f"/jobs/{job.job_id}/events?token={token.text}",
            "stream": f"/stream/{job.job_id}?token={token.text}",
        },
    }
    return Response(orjson.dumps(body), headers={"cache-control": "no-store"}, media_type="application/json")
