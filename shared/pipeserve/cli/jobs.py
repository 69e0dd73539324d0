"""``pipeserve jobs``: the jobs of a running service, to find, look at, stop and run again."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Annotated

import orjson
import typer

from pipeserve.cli import jobs_retry
from pipeserve.cli.job_lines import write_job, write_jobs
from pipeserve.cli.options import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    Code,
    JobId,
    Labels,
    Status,
    Url,
    parse_labels,
)
from pipeserve.cli.output import tell, write_json
from pipeserve.cli.watch import watch_job


def build_app() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(no_args_is_help=True, help="The jobs of a running service.")
    app.command("list")(list_jobs)
    app.command()(show)
    app.command()(watch)
    app.command()(cancel)
    app.command()(jobs_retry.retry)
    app.command()(logs)
    app.command()(explain)
    return app


def list_jobs(
    status: Status = None,
    code: Code = None,
    labels: Labels = None,
    limit: Annotated[int, typer.Option(min=1, help="List so many at most.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    wanted = parse_labels(labels)
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        # One more than is shown tells whether there are more.
        found = list(client.jobs(status=status, code=code, labels=wanted, limit=limit + 1))
    if as_json:
        write_json([job.model_dump(mode="json") for job in islice(found, limit)])
        return
    write_jobs(found[:limit])
    if len(found) > limit and sys.stdout.isatty():
        tell(f"There are more: these are the newest {limit}. --limit shows more of them.")


def show(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show one job as it is now."""
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        job = client.job(job_id).record()
    write_json(job.model_dump(mode="json")) if as_json else write_job(job)


def watch(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show a job's events from the first, until it ends; then print its outputs.

    With --json: every event, one JSON object a line. A job that fails exits with 1.
    """
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        watch_job(client.job(job_id), as_json=as_json)


def cancel(
    job_id: JobId,
    reason: Annotated[str | None, typer.Option(help="Kept with the job.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a job. One that runs is canceling until its work has stopped."""
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        status = client.job(job_id).cancel(reason)
    write_json({"job_id": job_id, "status": status.value}) if as_json else sys.stdout.write(f"{status.value}\n")


def logs(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Print what a job's steps have printed and logged so far.

    With --json: one JSON object a line.
    """
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        for line in client.job(job_id).logs():
            if as_json:
                sys.stdout.write(orjson.dumps(line).decode() + "\n")
            else:
                when = line.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
                # Further lines of a message are set in, so that none looks like another's.
                message = "\n    ".join(line.message.splitlines())
                sys.stdout.write(f"{when} {line.level.upper():7} {line.step_name or '-'}: {message}\n")


def explain(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Tell in plain words where a job's time went."""
    from pipeserve.client import Client

    with Client(url, api_key) as client:
        explanation = client.job(job_id).explain()
    if as_json:
        write_json(explanation)
    else:
        sys.stdout.write("".join(f"{sentence}\n" for sentence in explanation.get("summary", [])))
