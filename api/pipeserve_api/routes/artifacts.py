"""The artifacts of a job: outputs that are too large for its record, as the bytes that were stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pipeserve.errors import BadRequestError, NotFoundError, StoreUnavailableError
from pipeserve.jobs import Job
from pipeserve.runtime.values.artifact_ref import Artifact, ArtifactRef
from pipeserve.runtime.values.artifacts import ArtifactError, ArtifactFile, ArtifactMissingError
from pipeserve_api.byte_range import UnsatisfiableError, has_it, wanted_range
from pipeserve_api.dependencies import JobsDep, ServicesDep
from pipeserve_api.openapi import problems
from pipeserve_api.problems import problem_response
from pipeserve_api.services import Services

router = APIRouter(tags=["jobs"])


@router.head("/jobs/{job_id}/artifacts/{name}", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/artifacts/{name}",
    response_class=Response,
    responses={
        200: {"description": "The bytes", "content": {"application/octet-stream": {}}},
        206: {"description": "The range of them that was asked for"},
        304: {"description": "You have them"},
        **problems(404, 416, 503),
    },
    summary="Download an artifact",
)
async def get_artifact(request: Request, job_id: str, name: str, services: ServicesDep, jobs: JobsDep) -> Response:
    """A large output of a job, whose record refers to it: ``{"$artifact": {"name": …, "href": …}}``."""
    job = await jobs.get(job_id)
    ref = _find(job, name)
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": f'attachment; filename="{ref.name}"',
        "etag": f'"{ref.sha256}"',
    }
    if has_it(request.headers, headers["etag"]):
        return Response(status_code=304, headers=headers)
    async with AsyncExitStack() as opened:
        file = await _open(services, job, ref, opened)
        try:
            part = wanted_range(request.headers, size=file.size, etag=headers["etag"])
        except UnsatisfiableError:
            return _unsatisfiable(request, file.size)
        start, stop = (0, file.size) if part is None else (part.start, part.stop)
        headers |= {"content-length": str(stop - start), "content-type": ref.media_type}
        if part is not None:
            headers["content-range"] = part.content_range
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return Response(None, status, headers)
        return _FileResponse(file.chunks(start, stop), status, headers, opened.pop_all())
    raise AssertionError("the stack suppresses nothing")


def _find(job: Job, name: str) -> ArtifactRef:
    """The reference in the job's record. Raises NotFoundError."""
    outputs = (job.outputs if job.result is None else job.result) or {}
    refs = [ref for value in outputs.values() if (ref := ArtifactRef.read(value)) is not None]
    for ref in refs:
        if ref.name == name:
            if ref.missing:
                raise NotFoundError(f"The artifact {name!r} could not be written when its run ended.")
            return ref
    known = f"It has {', '.join(ref.name for ref in refs)}." if refs else "It has none."
    raise NotFoundError(f"The job has no artifact {name[:160]!r}. {known}")


async def _open(services: Services, job: Job, ref: ArtifactRef, opened: AsyncExitStack) -> ArtifactFile | _Unwritten:
    """The artifact's bytes, until ``opened`` is closed. Raises NotFoundError, StoreUnavailableError."""
    unwritten = services.inline.artifact(job.job_id, ref.name)
    if unwritten is not None:
        return _Unwritten(unwritten)
    near = job.completed_at or datetime.now(UTC)
    try:
        return await opened.enter_async_context(services.artifacts.open(job.job_id, ref, near))
    except ArtifactMissingError:
        raise NotFoundError(
            f"The file of the artifact {ref.name!r} can't be reached from this machine. Either it has been removed, or "
            "the process that ran the job keeps its artifacts elsewhere: all processes of a service need the same "
            "PIPESERVE_ARTIFACTS_URL, a bucket or a folder that they share."
        ) from None
    except ArtifactError:
        raise StoreUnavailableError("The artifacts' folder or bucket can't be read now; try again later.") from None


class _Unwritten:
    """An artifact that this process has not yet written."""

    def __init__(self, artifact: Artifact) -> None:
        self._data = artifact.data
        self.size = len(artifact.data)

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Its bytes from ``start`` to before ``stop``."""
        yield self._data[start:stop]


class _FileResponse(StreamingResponse):
    """Streams, and closes what it streams from also when the caller leaves."""

    def __init__(
        self, content: AsyncIterator[bytes], status_code: int, headers: Mapping[str, str], opened: AsyncExitStack
    ) -> None:
        super().__init__(content, status_code, headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with self._opened:
            await super().__call__(scope, receive, send)


def _unsatisfiable(request: Request, size: int) -> Response:
    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    problem = BadRequestError(f"The artifact has {size} bytes.").problem(instance=request.url.path)
    problem = problem.model_copy(update={"status": int(status), "title": status.phrase})
    return problem_response(problem, headers={"content-range": f"bytes */{size}"})
