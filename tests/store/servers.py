"""Servers beside the embedded one: on TCP ports, with any options, replicas and sentinels among them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError
from tests.store_fixtures import wait_until

from pipeserve.store.valkey_process import find_server

PASSWORD = "p@ss/word"
"""Of the servers; needs escapes in a URL."""
SENTINEL_PASSWORD = "s&cret"
PRIMARY_NAME = "the primary"


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """One server process. ``async with`` starts it, waits for its answer, and kills it."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        password: str | None = PASSWORD,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self._password = password
        self._directory = directory / f"server-{self.port}"
        self._command = [find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        if password is not None:
            self._command += ["--requirepass", password, "--masterauth", password]
        self._command += options
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of this server alone."""
        user = "" if self._password is None else ":p%40ss%2Fword@"
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """While it runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, also again, with what it has written."""
        self._directory.mkdir(exist_ok=True)
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={**os.environ, **(self._environment or {})},
            )
        await wait_until(self.answers, description=f"the server answers; see {self._directory / 'log'}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ask(self, *command: Any) -> Any:
        """One command on a connection of its own."""
        client = redis.asyncio.Redis(
            port=self.port, password=self._password, socket_timeout=5, socket_connect_timeout=5, decode_responses=True
        )
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()

    async def answers(self) -> bool:
        """Whether it takes commands."""
        with contextlib.suppress(RedisError, OSError):
            return bool(await self.ask("PING"))
        return False

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()


class Sentinel(Server):
    """One sentinel over ``primary``."""

    def __init__(self, directory: Path, primary: Server, *, quorum: int) -> None:
        super().__init__(directory, password=SENTINEL_PASSWORD)
        self._directory.mkdir()
        file = self._directory / "sentinel.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f'requirepass "{SENTINEL_PASSWORD}"',
            f'sentinel monitor "{PRIMARY_NAME}" 127.0.0.1 {primary.port} {quorum}',
            f'sentinel auth-pass "{PRIMARY_NAME}" "{PASSWORD}"',
            f'sentinel down-after-milliseconds "{PRIMARY_NAME}" 500',
            f'sentinel failover-timeout "{PRIMARY_NAME}" 3000',
        ]
        file.write_text("\n".join(lines) + "\n")
        self._command = [find_server(), str(file), "--sentinel"]


class Replicated:
    """A primary, its replicas, and sentinels that will replace the one by one of the others."""

    def __init__(self, primary: Server, replicas: list[Server], sentinels: list[Sentinel]) -> None:
        self.primary = primary
        self.replicas = replicas
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        """With a first sentinel that is not there."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (1, *(sentinel.port for sentinel in self.sentinels)))
        return f"redis+sentinel://:p%40ss%2Fword@{hosts}/the%20primary?sentinel_password=s%26cret"

    async def caught_up(self) -> bool:
        """Whether a replica has all that the primary has."""
        info = await self.primary.ask("INFO", "replication")
        return any(info[f"slave{at}"]["offset"] == info["master_repl_offset"] for at in range(len(self.replicas)))

    async def primary_port(self) -> int:
        """As the first sentinel knows it."""
        told = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME)
        return int(told[1])


@contextlib.asynccontextmanager
async def replicated(directory: Path, *, replicas: int = 1, sentinels: int = 3) -> AsyncIterator[Replicated]:
    """All of it running, and knowing of one another."""
    durable = ("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--repl-diskless-sync-delay", "0")
    async with contextlib.AsyncExitStack() as stack:
        primary = await stack.enter_async_context(Server(directory, *durable))
        followers = [Server(directory, *durable, "--replicaof", f"127.0.0.1 {primary.port}") for _ in range(replicas)]
        for follower in followers:
            await stack.enter_async_context(follower)
        watchers = [Sentinel(directory, primary, quorum=sentinels // 2 + 1) for _ in range(sentinels)]
        for watcher in watchers:
            await stack.enter_async_context(watcher)

        async def ready() -> bool:
            for watcher in watchers:
                flat = await watcher.ask("SENTINEL", "MASTER", PRIMARY_NAME)
                known = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
                if int(known["num-slaves"]) < replicas or int(known["num-other-sentinels"]) < sentinels - 1:
                    return False
            links = [(await follower.ask("INFO", "replication"))["master_link_status"] for follower in followers]
            return set(links) == {"up"}

        await wait_until(ready, description="the sentinels know the replicas and one another", seconds=30)
        yield Replicated(primary, followers, watchers)
