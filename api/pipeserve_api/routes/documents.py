"""``GET /asyncapi.json``: what the streams carry. FastAPI serves ``/openapi.json`` by itself."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from pipeserve import __version__
from pipeserve_api import asyncapi
from pipeserve_api.dependencies import ServicesDep

router = APIRouter()


@router.get("/asyncapi.json", include_in_schema=False)
async def get_asyncapi(services: ServicesDep) -> Response:
    """The AsyncAPI document of this deployment."""
    needs_key = services.settings.service.needs_key
    described = asyncapi.document(__version__, services.deployment, services.definition, needs_key=needs_key)
    return Response(orjson.dumps(described), media_type="application/json")
