"""What a job's steps have printed and logged, read from the job's event log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from starlette.responses import PlainTextResponse, Response

from pipeserve.events import EventType, event_type_of, is_terminal
from pipeserve.runtime.ports import LogGap
from pipeserve_api import answers
from pipeserve_api.dependencies import AfterSeq, JobsDep, ServicesDep
from pipeserve_api.lookup import JobLog
from pipeserve_api.models import LogPage
from pipeserve_api.openapi import problems

router = APIRouter(tags=["jobs"])
JSON = "application/json"
MOST = 10_000
"""Lines of one page."""
_AT_ONCE = 1000  # events of one read
_MOST_READ = 20_000  # events looked at for one page: the lines may be few among them


@router.get(
    "/jobs/{job_id}/logs",
    response_model=LogPage,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(404, 422, 503)},
    summary="Read what a job's steps printed and logged",
)
async def get_logs(
    job_id: str,
    services: ServicesDep,
    jobs: JobsDep,
    after: AfterSeq = 0,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 1000,
    format_: Annotated[Literal["json", "text"], Query(alias="format")] = "json",
) -> Response:
    """Pass ``next`` as ``after`` to go on; ``done`` says that nothing will follow. As text, ``Link`` has the next page.

    Empty where the pipeline does not capture logs. ``GET /jobs/{id}/events?wait=`` and ``/stream`` tell lines at once.
    """
    job = await jobs.get(job_id)
    page = await _read(jobs.log_of(job_id), after, limit)
    # Everything that there was has been read, and the job had ended before.
    page.done = page.done or (page.exhausted and job.status.terminal)
    headers = {} if page.done else dict(answers.RETRY_AFTER)
    if format_ == "text":
        if not page.done:
            headers["link"] = f'</jobs/{job_id}/logs?format=text&limit={limit}&after={page.position}>; rel="next"'
        return PlainTextResponse("".join(_text_of(line) for line in page.lines), headers=headers)
    body: dict[str, Any] = {"logs": page.lines, "next": page.position, "done": page.done}
    if page.gaps:
        body["gaps"] = page.gaps
    return Response(orjson.dumps(body), headers=headers, media_type=JSON)


@dataclass(slots=True)
class _Page:
    position: int
    """The number of the last event that was looked at."""
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    gaps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    done: bool = False
    exhausted: bool = False
    """Whether there was nothing more to read."""


async def _read(log: JobLog, after: int, limit: int) -> _Page:
    page = _Page(after)
    while len(page.lines) < limit and page.position - after < _MOST_READ and not page.done:
        entries = await log.read(after=page.position, limit=_AT_ONCE)
        if not entries:
            page.exhausted = True
            break
        for entry in entries:
            if isinstance(entry, LogGap):
                page.gaps.append({"from": entry.first, "to": entry.last, "reason": entry.reason})
                page.position = entry.last
                continue
            if event_type_of(entry.body) == EventType.LOG:
                if len(page.lines) == limit:
                    break
                page.lines.append(_line(entry.seq, entry.body))
            page.position = entry.seq
            page.done = is_terminal(entry.body)
    return page


def _line(seq: int, body: bytes) -> dict[str, Any]:
    event = orjson.loads(body)
    data = event["data"]
    return {
        "seq": seq,
        "timestamp": event["timestamp"],
        "step_name": event["step_name"],
        "level": event["level"],
        "logger": data.get("logger"),
        "message": event["message"],
        "attempt": event["attempt"],
        "cut": bool(data.get("cut", False)),
    }


def _text_of(line: dict[str, Any]) -> str:
    """One line; where the message itself has several, those after the first are set in: none looks like another's."""
    message = "\n    ".join(str(line["message"]).splitlines())
    where = line["step_name"] or "-"
    return f"{line['timestamp']} {str(line['level']).upper():8} {where} {line['logger']}: {message}\n"
