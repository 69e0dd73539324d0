"""One WebSocket from its opening to its close.

A task receives at all times: a connection whose handler only sends would hold up the server's shutdown. It answers what
can be answered at once and queues the rest for a second task, which does one operation after the other. Whatever ends
the session, everything that it began is released before it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Send

from pipeserve.errors import Problem, ProblemError
from pipeserve.runtime.tasks import end_tasks
from pipeserve_api.callers import EVERYBODY, Caller
from pipeserve_api.problems import unexpected_problem
from pipeserve_api.services import Services
from pipeserve_api.socket import wire
from pipeserve_api.socket.credit import Credit
from pipeserve_api.socket.frames import Credit as CreditFrame
from pipeserve_api.socket.frames import Invoke, Ping
from pipeserve_api.socket.operations import Operations
from pipeserve_api.socket.reading import Operation, UnreadableFrame, read_frame
from pipeserve_api.socket.runs import OwnRuns
from pipeserve_api.socket.sender import Sender, SocketGone
from pipeserve_api.socket.subscriptions import Subscriptions

STALL_SECONDS = 60.0
"""A client that takes nothing for so long is let go; it resumes by number."""
MAX_WAITING = 64
"""Operations that wait for those before them; beyond, nothing more is received."""
_GOING_AWAY = (1001, "this replica is shutting down: go on at another")
_TRY_AGAIN_LATER = (1013, "nothing was read for too long: go on with after")
_CLOSING_SECONDS = 1.0  # for a server that would wait for the reader before it says goodbye

_log = logging.getLogger(__name__)


class Session:
    """Serves one socket that was accepted."""

    def __init__(
        self,
        services: Services,
        receive: Receive,
        send: Send,
        *,
        instance: str,
        ask_caller: Callable[[], Caller | None] = lambda: EVERYBODY,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """``instance``: the path, for problems. ``ask_caller``: see :class:`Operations`."""
        self._services = services
        self._receive = receive
        self._send = send
        self._instance = instance
        self._stall_seconds = stall_seconds
        self._sender = Sender(send)
        self._credit = Credit()
        self._runs = OwnRuns(services)
        self._subscriptions = Subscriptions(
            self._sender, self._credit, services.drain, instance, on_end=self._runs.ended
        )
        self._operations = Operations(services, self._sender, self._subscriptions, self._runs, ask_caller=ask_caller)
        self._waiting: asyncio.Queue[tuple[Operation, dict[str, Any]]] = asyncio.Queue(MAX_WAITING)

    async def run(self) -> None:
        """Serve until the client leaves, takes nothing for too long, or this process drains."""
        drain = self._services.drain
        tasks = [
            asyncio.create_task(self._read(), name="socket-read"),
            asyncio.create_task(self._work(), name="socket-work"),
            asyncio.create_task(drain.wait(), name="socket-drain"),
        ]
        try:
            while not any(task.done() for task in tasks) and self._sender.stalled_for < self._stall_seconds:
                pause = self._stall_seconds / 4
                await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in tasks if task.done() and task.exception() is not None]
        finally:
            await end_tasks(tasks)
            await self._subscriptions.close()
            if not drain.begun:  # else they have time to end, and the client goes on at another replica
                await self._runs.leave()
            await self._runs.close()
        for task in failed:
            task.result()
        if not tasks[0].done() or tasks[0].cancelled():  # else the client has left
            await self._close(*(_GOING_AWAY if drain.begun else _TRY_AGAIN_LATER))

    async def _close(self, code: int, reason: str) -> None:
        """Say goodbye, which a client may leave unheard."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _read(self) -> None:
        with contextlib.suppress(SocketGone):
            while (message := await self._receive())["type"] != "websocket.disconnect":
                await self._take(message.get("text"))

    async def _take(self, text: str | None) -> None:
        try:
            frame, members = read_frame(text, self._services.settings.service.max_body)
        except UnreadableFrame as unreadable:
            await self._refuse(unreadable.error, unreadable.ref, None)
            return
        match frame:
            case Ping():
                await self._sender.send(wire.pong(frame.ref))
            case CreditFrame():
                self._credit.grant(frame.n)
            case _:
                await self._waiting.put((frame, members))

    async def _work(self) -> None:
        with contextlib.suppress(SocketGone):
            while True:
                operation, members = await self._waiting.get()
                job_id = None if isinstance(operation, Invoke) else operation.job_id
                try:
                    await self._operations.do(operation, members)
                except ProblemError as error:
                    await self._refuse(error, operation.ref, job_id)
                except SocketGone:
                    raise
                except Exception:  # a fault here is this operation's answer, as over HTTP, and the socket stays
                    _log.exception("an operation over a socket failed")
                    await self._say(unexpected_problem(self._instance), operation.ref, job_id)

    async def _refuse(self, error: ProblemError, ref: str | None, job_id: str | None) -> None:
        problem = error.problem(instance=self._instance)
        await self._say(problem, ref, job_id or error.job_id, error.retry_after)

    async def _say(
        self, problem: Problem, ref: str | None, job_id: str | None, retry_after: float | None = None
    ) -> None:
        await self._sender.send(wire.error(problem, ref=ref, job_id=job_id, retry_after=retry_after))
