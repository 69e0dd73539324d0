"""Several API processes on one port (``ZENML_SERVICE_WORKERS``): they share one listening socket.

The parent opens the store, so that an embedded one outlives each child, and starts a child anew when it dies. A child
that can't start at all (exit code 2) ends the whole service with the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time

from pipeserve.errors import ConfigurationError
from pipeserve.runtime.deployed import find_deployment
from pipeserve.settings import ServiceSettings
from pipeserve_api import parent
from pipeserve_api.settings import ApiSettings

LISTEN_FD = "PIPESERVE_LISTEN_FD"
"""The number of the listening socket that a child inherits."""
BACKLOG = 2048
CANT_START = 2
QUICK_DEATH = 1.0
"""A child that lived for fewer seconds is started again after as many: a crash loop must not spin."""

_log = logging.getLogger(__name__)


def bound_socket(settings: ServiceSettings) -> socket.socket:
    """A socket bound to where the settings say, which does not listen yet: who asks too early is refused at once.

    Raises ConfigurationError when the address can't be had.
    """
    try:
        address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(address[0], address[1], address[2])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
    except OSError as error:
        raise ConfigurationError(
            f"can't listen on {settings.host}:{settings.port} "
            f"(ZENML_SERVICE_HOST, ZENML_SERVICE_PORT): {error.strerror}"
        ) from None
    listener.setblocking(False)
    return listener


def listen(bound: socket.socket) -> str:
    """Let connections in; the URL at which they come."""
    bound.listen(BACKLOG)
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def inherited_socket() -> socket.socket | None:
    """The listening socket that a parent of several processes has passed to this one."""
    number = os.environ.get(LISTEN_FD)
    return None if number is None else socket.socket(fileno=int(number))


async def serve_in_processes(settings: ApiSettings) -> int:
    """Run the children until told to stop. Returns the exit code."""
    from pipeserve.store import open_store

    listener = bound_socket(settings.service)
    async with open_store(settings.store) as store:
        await find_deployment(store.registry, settings.deployment.required())
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        environment = os.environ | {
            LISTEN_FD: str(listener.fileno()),
            "PIPESERVE_REDIS_URL": store.url,
            parent.VARIABLE: str(os.getpid()),
        }
        url = listen(listener)  # before the children are ready: the first of them takes what waits
        _log.info("serving", extra={"url": url, "processes": settings.service.workers})
        async with asyncio.TaskGroup() as group:
            children = [
                group.create_task(_keep_running(environment, listener.fileno(), stop))
                for _ in range(settings.service.workers)
            ]
        listener.close()
        return max(child.result() for child in children)


async def _keep_running(environment: dict[str, str], listener: int, stop: asyncio.Event) -> int:
    """One child after another until ``stop``; then the exit code of the last."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while True:
            started = time.monotonic()
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pipeserve_api", env=environment, pass_fds=(listener,)
            )
            ending = asyncio.ensure_future(child.wait())
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
            code = await ending
            if stop.is_set():
                return max(code, 0)
            if code == CANT_START:
                stop.set()
                return code
            _log.error("an API process died; starting another", extra={"pid": child.pid, "code": code})
            pause = QUICK_DEATH if time.monotonic() - started < QUICK_DEATH else 0.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
    finally:
        stopping.cancel()
