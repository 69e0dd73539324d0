"""``pipeserve invoke``: call a running service from the command line."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from pipeserve.cli.options import DEFAULT_URL, ApiKey, AsJson, Parameters, Timeout, Url, parse_labels, parse_parameters
from pipeserve.cli.output import write_json
from pipeserve.cli.watch import watch_job
from pipeserve.errors import ConfigurationError


def invoke(
    params: Parameters = None,
    asynchronous: Annotated[
        bool, typer.Option("--async", help="Submit it as a job, print the job's id alone, and leave.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Submit it as a job and show its events as they happen.")
    ] = False,
    timeout: Timeout = None,
    priority: Annotated[
        int | None, typer.Option(min=-10, max=10, help="Which jobs go first: -10 to 10, higher before lower.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="Kept with the job, to find it by; repeat as needed."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="However often the call is made with this key and the same parameters, it is one job."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Run the served pipeline and print its outputs as JSON.

    With --json: the whole answer; with --watch --json: every event, one JSON object a line.
    """
    if asynchronous and watch:
        raise ConfigurationError("--async leaves the job and --watch stays with it: give one of them")
    parameters, given_labels = parse_parameters(params), parse_labels(labels)
    from pipeserve.client import Client

    with Client(url, api_key) as plain:
        try:
            client = plain.with_options(
                timeout=timeout, priority=priority, labels=given_labels or None, idempotency_key=idempotency_key
            )
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        if asynchronous:
            job_id = client.submit(parameters).job_id
            write_json({"job_id": job_id}) if as_json else sys.stdout.write(f"{job_id}\n")
        elif watch:
            watch_job(client.submit(parameters), as_json=as_json)
        else:
            result = client.invoke(parameters)
            write_json(asdict(result) if as_json else result.outputs)
