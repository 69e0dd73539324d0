"""What routes take as arguments."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import HTTPConnection

from pipeserve_api.callers import caller_in
from pipeserve_api.lookup import JobLookup
from pipeserve_api.services import Services

MAX_WAIT = 300.0
"""Seconds that a long poll may ask for: proxies close a silent connection not much later."""


def get_services(connection: HTTPConnection) -> Services:
    """What the lifespan has opened; for requests and WebSockets."""
    return connection.state.services


def get_jobs(connection: HTTPConnection) -> JobLookup:
    """The jobs that the caller may see."""
    services: Services = connection.state.services
    return services.directory.seen_by(caller_in(connection.scope))


ServicesDep = Annotated[Services, Depends(get_services)]
JobsDep = Annotated[JobLookup, Depends(get_jobs)]
WaitSeconds = Annotated[
    float, Query(ge=0, le=MAX_WAIT, allow_inf_nan=False, description="Seconds to wait for news before answering.")
]
AfterSeq = Annotated[int, Query(ge=0, le=2**53, description="The number of the last event that you have.")]
