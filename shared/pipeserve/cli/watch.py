"""Stays with a job to its end: its events as they happen, then its outputs or its error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipeserve.cli.output import EventTeller, tell, write_json
from pipeserve.events import encode_body, number

if TYPE_CHECKING:
    from pipeserve.client import Job


def watch_job(job: Job, *, as_json: bool) -> None:
    """Events on stderr and the outputs on stdout; ``as_json``: each event on stdout, one JSON object a line.

    Raises the error that the job ends with.
    """
    if not as_json:
        tell(f"job {job.job_id}")
    teller = EventTeller()
    for event in job.events():
        if as_json:
            sys.stdout.write(number(event.seq, encode_body(event)).decode() + "\n")
            sys.stdout.flush()
        else:
            teller.send(event)
    result = job.result()
    if not as_json:
        write_json(result.outputs)
