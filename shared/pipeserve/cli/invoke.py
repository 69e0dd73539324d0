"""``pipeserve invoke``: call a running service from the command line."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeserve.cli.options import DEFAULT_URL, ApiKey, AsJson, Parameters, Timeout, Url, parse_parameters
from pipeserve.cli.output import EventTeller, tell, write_json
from pipeserve.errors import ConfigurationError
from pipeserve.events import encode_body, number

if TYPE_CHECKING:
    from pipeserve.client import Job


def invoke(
    params: Parameters = None,
    asynchronous: Annotated[
        bool, typer.Option("--async", help="Submit it as a job, print the job's id alone, and leave.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Submit it as a job and show its events as they happen.")
    ] = False,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Run the served pipeline and print its outputs as JSON.

    With --json: the whole answer; with --watch --json: every event, one JSON object a line.
    """
    if asynchronous and watch:
        raise ConfigurationError("--async leaves the job and --watch stays with it: give one of them")
    parameters = parse_parameters(params)
    from pipeserve.client import Client

    with Client(url, api_key) as unbounded:
        client = unbounded.with_options(timeout=timeout)
        if asynchronous:
            job_id = client.submit(parameters).job_id
            write_json({"job_id": job_id}) if as_json else sys.stdout.write(f"{job_id}\n")
        elif watch:
            _watch(client.submit(parameters), as_json=as_json)
        else:
            result = client.invoke(parameters)
            write_json(asdict(result) if as_json else result.outputs)


def _watch(job: Job, *, as_json: bool) -> None:
    if not as_json:
        tell(f"job {job.job_id}")
    teller = EventTeller()
    for event in job.events():
        if as_json:
            sys.stdout.write(number(event.seq, encode_body(event)).decode() + "\n")
            sys.stdout.flush()
        else:
            teller.send(event)
    result = job.result()  # raises what the job ended with
    if not as_json:
        write_json(result.outputs)
