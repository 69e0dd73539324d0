"""What each operation of a client does. Each raises ProblemError as its route would, and answers otherwise."""

from __future__ import annotations

from typing import Any

from pipeserve.errors import AlreadyFinishedError, DrainingError, ForbiddenError
from pipeserve.jobs import JobStatus
from pipeserve_api import idempotency
from pipeserve_api.launch import Order
from pipeserve_api.services import Services
from pipeserve_api.socket import wire
from pipeserve_api.socket.frames import Cancel, Invoke, Subscribe, Unsubscribe
from pipeserve_api.socket.reading import Operation, body_of
from pipeserve_api.socket.runs import OwnRuns
from pipeserve_api.socket.sender import Sender
from pipeserve_api.socket.subscriptions import Subscriptions


class Operations:
    """The operations of one socket."""

    def __init__(
        self,
        services: Services,
        sender: Sender,
        subscriptions: Subscriptions,
        runs: OwnRuns,
        *,
        caller: str,
        grant: str | None,
    ) -> None:
        """``caller``: a digest of the key that was presented. ``grant``: the one job that may be read; None: all."""
        self._services = services
        self._sender = sender
        self._subscriptions = subscriptions
        self._runs = runs
        self._caller = caller
        self._grant = grant

    async def do(self, operation: Operation, members: dict[str, Any]) -> None:
        """Do it and acknowledge it. ``members``: the frame as it was sent. Raises ProblemError, SocketGone."""
        match operation:
            case Subscribe():
                await self._subscribe(operation)
            case Unsubscribe():
                await self._unsubscribe(operation)
            case Invoke():
                await self._invoke(operation, members)
            case Cancel():
                await self._cancel(operation)

    async def _subscribe(self, wanted: Subscribe) -> None:
        job_id = wanted.job_id
        self._check_grant(job_id)
        self._subscriptions.check_new(job_id)
        self._check_room()
        job = await self._services.jobs.get(job_id)
        log = self._services.jobs.log_of(job_id)
        opening = [wire.ack(wanted.ref, job_id)]
        if wanted.after is None:
            job = await self._services.forecast.of(job)
            opening.append(wire.snapshot(job.model_dump_json().encode()))
        self._subscriptions.start(job_id, log, after=wanted.after or 0, types=wanted.types)
        await self._sender.send(*opening)  # in line before the first event: that task has not begun yet

    async def _unsubscribe(self, wanted: Unsubscribe) -> None:
        self._check_grant(wanted.job_id)
        stopped = await self._subscriptions.stop(wanted.job_id)
        if stopped is not None:
            self._runs.unfollow(stopped.job_id, stopped.log, stopped.position)
        await self._sender.send(wire.ack(wanted.ref, wanted.job_id))

    async def _invoke(self, wanted: Invoke, members: dict[str, Any]) -> None:
        services, key = self._services, wanted.idempotency_key
        self._check_grant(None)
        self._check_room()
        if services.drain.begun:
            raise DrainingError
        invocation = services.invocations.read_item(body_of(members))
        same = None if key is None else idempotency.of_key(key, self._caller, invocation.sent, wanted.cache)
        launched = await self._runs.launch(
            Order(
                invocation,
                queued=wanted.mode == "async",
                cache=wanted.cache,
                caller=self._caller,
                idempotency=same,
            )
        )
        job_id = launched.job_id
        if job_id not in self._subscriptions:  # one with a key may be followed already
            self._subscriptions.start(job_id, launched.log, after=0, types=wanted.types)
        await self._sender.send(wire.ack(wanted.ref, job_id, replayed=launched.replayed or None))

    async def _cancel(self, wanted: Cancel) -> None:
        self._check_grant(None)
        job_id = wanted.job_id
        found = await self._services.jobs.cancel(job_id, reason=wanted.reason, by="caller")
        if found.already_finished and found.status is not JobStatus.CANCELED:
            raise AlreadyFinishedError(f"The job has already ended as {found.status.value}.", job_id=job_id)
        await self._sender.send(wire.ack(wanted.ref, job_id, status=found.status))

    def _check_room(self) -> None:
        self._subscriptions.check_room(others=self._runs.unfollowed)

    def _check_grant(self, job_id: str | None) -> None:
        """``job_id``: the job to read; None: what is wanted is more than to read one."""
        if self._grant is not None and self._grant != job_id:
            raise ForbiddenError(f"This token is for reading job {self._grant} only.", job_id=job_id)
