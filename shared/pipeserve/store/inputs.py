"""From a job's record back to what was submitted, so that it can be submitted again."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from pipeserve.errors import NotRetryableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import CacheUse, NewJob
from pipeserve.store.scripts.outbox import read_webhook

_CACHE_USES: dict[bytes, CacheUse] = {b"no-cache": "no-cache", b"no-store": "no-store"}


def read_input(job_id: str, fields: Mapping[bytes, bytes]) -> NewJob:
    """The job of this record, under its own id. Raises NotRetryableError: it has not ended, or its input is gone."""
    if not JobStatus(fields[b"status"].decode()).terminal:
        raise NotRetryableError("The job has not ended yet.", job_id=job_id)
    if b"parameters" not in fields:
        raise NotRetryableError(
            "The job's parameters were not kept, or only masked: send the request again.", job_id=job_id
        )
    total_steps, timeout = fields.get(b"total_steps"), fields.get(b"timeout")
    webhook = fields.get(b"webhook")
    return NewJob(
        job_id=job_id,
        deployment_id=fields[b"deployment_id"].decode(),
        pipeline_name=fields[b"pipeline_name"].decode(),
        caller=fields.get(b"caller", b"").decode(),
        run_name=fields[b"run_name"].decode(),
        parameters=fields[b"parameters"],
        labels=orjson.loads(fields.get(b"labels", b"{}")),
        timeout=None if timeout is None else float(timeout),
        total_steps=None if total_steps is None else int(total_steps),
        max_attempts=int(fields[b"max_attempts"]),
        keep_parameters=True,
        keep_events=fields[b"keep_events"] == b"1",
        cache=_CACHE_USES.get(fields.get(b"cache", b""), "use"),
        lane=fields.get(b"lane", b"").decode(),
        priority=int(fields.get(b"priority", 0)),
        webhook=None if webhook is None else read_webhook(webhook),
    )
