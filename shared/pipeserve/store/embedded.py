"""A Valkey of our own under a data directory, so that one command serves a pipeline with nothing else installed.

Whoever holds the lock file runs the server and restarts it if it dies; whoever finds the lock taken uses the server
through its socket, and takes over when the holder goes. The address stays the same throughout, so clients only
reconnect.

::

    <data dir>/store/   valkey.sock   valkey.lock   valkey.log   appendonlydir/

The server runs in a session of its own (Ctrl-C must not stop it before those who use it) and, on Linux, dies with the
process that started it, even if that is killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError

from pipeserve.errors import ConfigurationError
from pipeserve.runtime.tasks import end_tasks
from pipeserve.store.valkey_process import ValkeyProcess, find_server

logger = logging.getLogger(__name__)

LONGEST_SOCKET = 100
"""Characters; AF_UNIX takes 104 to 108 bytes."""
START_TIMEOUT = 60.0
"""Seconds; loading a long append-only file takes time."""
_LOOK_EVERY = 0.25
"""Seconds between looks at a lock that another process holds."""


class EmbeddedStore:
    """The server under one data directory, run or used by this process."""

    def __init__(self, data_dir: Path, *, strict: bool = False) -> None:
        self._strict = strict
        self.directory = data_dir.absolute() / "store"
        self.socket = socket_path(self.directory)
        self.url = f"unix://{self.socket}?db=0"
        self._lock = self.directory / "valkey.lock"
        self._process: ValkeyProcess | None = None
        self._locked: int | None = None

    @property
    def owned(self) -> bool:
        """Whether this process runs the server; otherwise another one does."""
        return self._locked is not None

    async def open(self) -> None:
        """Start the server, or wait until another process has. Raises ConfigurationError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + START_TIMEOUT
        while not await self._try_to_own():
            if await self._answers():
                return
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"another process holds {self._lock}, but no store answers at {self.socket}; "
                    f"see {self.directory / 'valkey.log'}"
                )
            await asyncio.sleep(0.05)

    async def watch(self) -> None:
        """For ever: restart the server that this process runs, or take over from the process that ran it."""
        failures = 0
        while True:
            if self._process is not None:
                code = await self._process.wait()
                logger.warning("the embedded store ended with code %s and is started again", code)
                self._process = None
            try:
                if self.owned:
                    await self._start()
                    failures = 0
                elif not await self._try_to_own():
                    await asyncio.sleep(_LOOK_EVERY)
            except (ConfigurationError, OSError):
                logger.exception("the embedded store could not be started")
                failures += 1
                await asyncio.sleep(min(10.0, 0.2 * 2**failures))

    async def close(self) -> None:
        """Stop the server if this process runs it."""
        if self._process is not None:
            await self._process.stop()
            self._process = None
            self.socket.unlink(missing_ok=True)
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    async def _try_to_own(self) -> bool:
        # Not inherited by the server: the lock must end with this process.
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locked = descriptor
        try:
            await self._start()
        except BaseException:
            os.close(descriptor)
            self._locked = None
            raise
        return True

    async def _start(self) -> None:
        await self._end_orphan()
        self.socket.unlink(missing_ok=True)
        process = ValkeyProcess(find_server(), self.directory, self.socket, strict=self._strict)
        process.start()
        self._process = process  # at once: if this is cancelled, and again while it stops the server, close() stops it
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while not await self._answers():
                if process.exit_code is not None or time.monotonic() > deadline:
                    raise ConfigurationError(f"the embedded store did not start:\n{process.last_words()}")
                await asyncio.sleep(0.01)
        except BaseException:
            await process.stop()
            self._process = None
            raise

    async def _end_orphan(self) -> None:
        """A server without a holder: its starter was killed, and the server is dying or (not on Linux) left over."""
        deadline = time.monotonic() + 10.0
        while await self._answers():
            if time.monotonic() > deadline:
                raise ConfigurationError(f"a store that nobody runs answers at {self.socket} and does not stop")
            await self._ask("SHUTDOWN", "NOSAVE")
            await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        return self.socket.exists() and await self._ask("PING")

    async def _ask(self, *command: str) -> bool:
        """Whether there is a server that did as it was told."""
        client = redis.asyncio.Redis(unix_socket_path=str(self.socket), socket_timeout=1.0, socket_connect_timeout=1.0)
        try:
            await client.execute_command(*command)  # pyright: ignore[reportUnknownMemberType]
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()
        return True


def socket_path(directory: Path) -> Path:
    """``valkey.sock`` in ``directory``, or under the temporary directory where that is too long for a socket."""
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"pipeserve-{os.getuid()}-{digest}.sock"


@asynccontextmanager
async def start_embedded(data_dir: Path, *, strict: bool = False) -> AsyncGenerator[str]:
    """The URL of the Valkey under ``data_dir``, which runs at least until the context is left.

    ``strict``: a server that this process starts has its file on disk before each answer. That adds milliseconds to
    every write, and spares those who wait for the disk up to a second.

    Raises ConfigurationError where there is no server to run, or it does not start.
    """
    store = EmbeddedStore(data_dir, strict=strict)
    await store.open()
    try:
        watch = asyncio.create_task(store.watch(), name="embedded-store")
        try:
            yield store.url
        finally:
            await end_tasks([watch])
    finally:
        await store.close()
