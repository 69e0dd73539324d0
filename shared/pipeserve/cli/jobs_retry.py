"""``pipeserve jobs retry``: runs the input of ended jobs again, as new jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeserve.cli.options import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    Code,
    JobIds,
    Labels,
    Status,
    Url,
    parse_labels,
)
from pipeserve.cli.output import tell, write_json
from pipeserve.errors import ConfigurationError, ProblemError
from pipeserve.jobs import JobStatus

if TYPE_CHECKING:
    from pipeserve.client import Client

FAILED = 1


def retry(
    job_ids: JobIds = None,
    all_: Annotated[bool, typer.Option("--all", help="Every ended job that the options below name.")] = False,
    status: Status = None,
    code: Code = None,
    labels: Labels = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --all: don't ask.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Run jobs again: each becomes a new job with the same input. Prints old → new.

    With --all it asks first, on a terminal. A job that was retried by --all before is not run once more: its line names
    the new job of that time.
    """
    wanted = parse_labels(labels)
    if all_:
        _check_search(job_ids, status, code)
    elif not job_ids:
        raise ConfigurationError("say which jobs: ids, or --all with --status or --code")
    elif status or code or wanted or yes:
        raise ConfigurationError("--status, --code, --label and --yes go with --all")
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        if all_:
            # All ids first: what is retried meanwhile makes new jobs, which may end in the same way.
            found = client.jobs(status=status, code=code, labels=wanted)
            old = [job.job_id for job in found if job.status.terminal]
            if old and not yes and sys.stdin.isatty():
                typer.confirm(f"Run {len(old)} job{'s' if len(old) > 1 else ''} again?", abort=True, err=True)
        else:
            old = list(dict.fromkeys(job_ids or ()))
        failures = _retry_each(client, old, once=all_, as_json=as_json)
    if all_ and not old:
        tell("No such jobs.")
    if failures:
        raise typer.Exit(FAILED)


def _check_search(job_ids: list[str] | None, status: JobStatus | None, code: str | None) -> None:
    if job_ids:
        raise ConfigurationError("--all finds the jobs itself: give ids or --all")
    if status is None and code is None:
        raise ConfigurationError("--all without --status or --code would run every job again: give one of them")
    if status is not None and not status.terminal:
        raise ConfigurationError(f"--status {status.value}: only jobs that have ended can be run again")


def _retry_each(client: Client, old: Sequence[str], *, once: bool, as_json: bool) -> int:
    """One after another, each told as it is done. Returns how many could not be retried.

    ``once``: a job that was retried so before stays at that. Who searches for jobs finds them again and again.
    """
    from pipeserve.client import ClientError

    told: list[dict[str, Any]] = []
    failures = 0
    try:
        for number, job_id in enumerate(old, 1):
            try:
                key = f"jobs-retry-all:{job_id}" if once else None
                new = client.job(job_id).retry(idempotency_key=key).job_id
            except ProblemError as error:
                failures += 1
                tell("pipeserve: " + (error.detail if job_id in error.detail else f"{job_id}: {error.detail}"))
                told.append({"job_id": job_id, "retried_as": None, "error": error.problem().as_dict()})
            except ClientError:
                if len(old) > 1:
                    tell(f"pipeserve: {number - 1} of {len(old)} done; not known of {job_id}, whether it was retried")
                raise
            else:
                told.append({"job_id": job_id, "retried_as": new, "error": None})
                if not as_json:
                    sys.stdout.write(f"{job_id} → {new}\n")
                    sys.stdout.flush()
    finally:
        if as_json:
            write_json(told)
    return failures
