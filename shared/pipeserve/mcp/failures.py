"""An error as a tool's result: plain words that a model can act on, and never a traceback."""

from __future__ import annotations

from mcp_types import CallToolResult, TextContent

from pipeserve.client import ClientError
from pipeserve.errors import PipeserveError, ProblemError
from pipeserve.mcp.addresses import job_uri


def failed(error: PipeserveError, *, job_id: str | None = None) -> CallToolResult:
    """The result that says what went wrong. ``job_id``: the job that had been submitted."""
    lines = [describe(error)]
    if job_id is not None and not isinstance(error, ProblemError):  # it has lost sight of the job, which goes on
        lines.append(f"The job may go on all the same: see {job_uri(job_id)} and {job_uri(job_id, 'result')}")
    return CallToolResult(content=[TextContent(text="\n".join(lines))], is_error=True)


def describe(error: PipeserveError) -> str:
    """In a few lines: what went wrong, where, and whether the same call has a chance later."""
    if isinstance(error, ProblemError):
        return "\n".join(_problem_lines(error))
    if isinstance(error, ClientError):
        return f"{error.code}: {error.detail}"
    return str(error)


def _problem_lines(error: ProblemError) -> list[str]:
    problem = error.problem()
    lines = [f"{problem.title} ({problem.code}): {problem.detail}"]
    details = [str(entry.get("detail", "")) for entry in problem.errors or ()]
    lines += [f"- {detail}" for detail in details if detail and detail not in problem.detail]
    if problem.step is not None:
        lines.append(f"Step: {problem.step}")
    if problem.job_id is not None:
        lines.append(f"Job: {problem.job_id}")
    if problem.code in ("unauthorized", "forbidden"):
        lines.append("The key is the one given to `pipeserve mcp` as --api-key or PIPESERVE_API_KEY.")
    if problem.retryable:
        after = "" if error.retry_after is None else f", in {error.retry_after:g} s at the earliest"
        lines.append(f"The same call may succeed later{after}.")
    return lines
