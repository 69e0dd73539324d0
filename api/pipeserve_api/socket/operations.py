"""What each operation of a client does. Each raises ProblemError as its route would, and answers otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeserve.errors import AlreadyFinishedError, DrainingError, UnauthorizedError
from pipeserve.jobs import JobStatus
from pipeserve.key_file import KeyScope
from pipeserve_api import idempotency
from pipeserve_api.callers import Caller, check_may
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
        ask_caller: Callable[[], Caller | None],
    ) -> None:
        """``ask_caller``: who is at the other end, as it stands at each operation. None: its key is good no more."""
        self._services = services
        self._sender = sender
        self._subscriptions = subscriptions
        self._runs = runs
        self._ask_caller = ask_caller

    async def do(self, operation: Operation, members: dict[str, Any]) -> None:
        """Do it and acknowledge it. ``members``: the frame as it was sent. Raises ProblemError, SocketGone."""
        caller = self._ask_caller()
        if caller is None:
            raise UnauthorizedError
        await self._services.limits.request(caller)
        match operation:
            case Subscribe():
                await self._subscribe(operation, caller)
            case Unsubscribe():
                await self._unsubscribe(operation, caller)
            case Invoke():
                await self._invoke(operation, members, caller)
            case Cancel():
                await self._cancel(operation, caller)

    async def _subscribe(self, wanted: Subscribe, caller: Caller) -> None:
        job_id = wanted.job_id
        check_may(caller, KeyScope.READ, job_id=job_id)
        self._subscriptions.check_new(job_id)
        self._check_room()
        jobs = self._services.directory.seen_by(caller)
        job = await jobs.get(job_id)
        log = jobs.log_of(job_id)
        opening = [wire.ack(wanted.ref, job_id)]
        if wanted.after is None:
            job = await self._services.forecast.of(job)
            opening.append(wire.snapshot(job.model_dump_json().encode()))
        self._subscriptions.start(job_id, log, after=wanted.after or 0, types=wanted.types)
        await self._sender.send(*opening)  # in line before the first event: that task has not begun yet

    async def _unsubscribe(self, wanted: Unsubscribe, caller: Caller) -> None:
        check_may(caller, KeyScope.READ, job_id=wanted.job_id)
        stopped = await self._subscriptions.stop(wanted.job_id)
        if stopped is not None:
            self._runs.unfollow(stopped.job_id, stopped.log, stopped.position)
        await self._sender.send(wire.ack(wanted.ref, wanted.job_id))

    async def _invoke(self, wanted: Invoke, members: dict[str, Any], caller: Caller) -> None:
        services, key = self._services, wanted.idempotency_key
        check_may(caller, KeyScope.INVOKE)
        self._check_room()
        if services.drain.begun:
            raise DrainingError
        invocation = services.invocations.read_item(body_of(members))
        same = None if key is None else idempotency.of_key(key, caller.name, invocation.sent, wanted.cache)
        launched = await self._runs.launch(
            Order(
                invocation,
                queued=wanted.mode == "async",
                cache=wanted.cache,
                caller=caller,
                idempotency=same,
            )
        )
        job_id = launched.job_id
        if job_id not in self._subscriptions:  # one with a key may be followed already
            self._subscriptions.start(job_id, launched.log, after=0, types=wanted.types)
        await self._sender.send(wire.ack(wanted.ref, job_id, replayed=launched.replayed or None))

    async def _cancel(self, wanted: Cancel, caller: Caller) -> None:
        check_may(caller, KeyScope.CANCEL)
        job_id = wanted.job_id
        found = await self._services.directory.seen_by(caller).cancel(job_id, reason=wanted.reason, by="caller")
        if found.already_finished and found.status is not JobStatus.CANCELED:
            raise AlreadyFinishedError(f"The job has already ended as {found.status.value}.", job_id=job_id)
        await self._sender.send(wire.ack(wanted.ref, job_id, status=found.status))

    def _check_room(self) -> None:
        self._subscriptions.check_room(others=self._runs.unfollowed)
