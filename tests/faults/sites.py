"""Where a drill strikes: an installation of its own, or one that runs on this machine already."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import redis
from tests.faults.figures import Kill
from tests.faults.installation import PIPELINES, Installation, installation, now

WORKERS_LEFT = 1
"""Worker processes that must be left after a kill, so that a job has somewhere to go on."""


class Site(Protocol):
    """What a drill needs to know and may do."""

    urls: list[str]
    headers: Mapping[str, str]
    effects: Path | None
    """Where steps leave their lines; None: its pipeline leaves none that could be judged."""

    async def kill(self, what: str, moments: random.Random) -> Kill | None:
        """End one ``worker``, ``supervisor``, ``api`` or the ``store``, and see that it comes back. None: none can be
        spared now."""
        ...


@dataclass
class OwnSite:
    """An installation that was started for this drill."""

    at: Installation

    def __post_init__(self) -> None:
        self.urls = self.at.urls
        self.headers: Mapping[str, str] = {}
        self.effects: Path | None = self.at.effects

    async def kill(self, what: str, moments: random.Random) -> Kill | None:
        """See :class:`Site`."""
        if what == "worker":
            return _kill_one(await self.at.serving(), what, moments)
        if what == "store":
            kill = Kill(self.at.store_pid(), now(), what)
            await self.at.restart_store()
            return kill
        part = moments.choice(self.at.apis if what == "api" else self.at.supervisors)
        kill = Kill(part.pid, now(), what)
        part.kill()
        part.start()
        return kill


class FoundSite:
    """An installation on this machine, known by the URL of its API. Whoever runs it starts again what is killed."""

    def __init__(self, urls: list[str], api_key: str | None, effects: Path) -> None:
        self.urls = urls
        self.headers: Mapping[str, str] = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.effects: Path | None = effects

    async def look(self) -> None:
        """Find out what it serves. Raises httpx.HTTPError if it does not answer."""
        target = str((await self._get("/info"))["deployment"]["target"])
        if Path(target.rpartition(":")[0]).name != PIPELINES.name or not target.endswith(":drill"):
            self.effects = None

    async def kill(self, what: str, moments: random.Random) -> Kill | None:
        """See :class:`Site`."""
        match what:
            case "worker":
                return _kill_one(await self._workers(), what, moments)
            case "api":
                port = httpx.URL(moments.choice(self.urls)).port
                return _kill_one(_listeners(port), what, moments, left=0)
            case "store":
                return _kill_one([_store_pid((await self._get("/status"))["store"]["url"])], what, moments, left=0)
            case _:
                raise ValueError(f"a drill over a URL can't kill a {what}")

    async def _workers(self) -> list[int]:
        """Living worker processes of this machine. Their token is looked for in their command line, so that a pid that
        was given to some other process is never taken for one."""
        found: list[int] = []
        with contextlib.suppress(httpx.HTTPError):
            for worker in (await self._get("/status"))["workers"]:
                if worker["host"] == socket.gethostname() and _is_child(worker["pid"], worker["id"]):
                    found.append(worker["pid"])
        return found

    async def _get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self.urls[0], headers=self.headers, timeout=10) as http:
            answer = await http.get(path)
            answer.raise_for_status()
            return answer.json()


def _kill_one(pids: list[int], what: str, moments: random.Random, *, left: int = WORKERS_LEFT) -> Kill | None:
    if len(pids) <= left:
        return None
    kill = Kill(moments.choice(sorted(pids)), now(), what)
    with contextlib.suppress(ProcessLookupError):
        os.kill(kill.pid, signal.SIGKILL)
        return kill
    return None


def _is_child(pid: int, owner: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return owner.rpartition(":")[2] in psutil.Process(pid).cmdline()
    return False


def _listeners(port: int | None) -> list[int]:
    found: list[int] = []
    for connection in psutil.net_connections("tcp"):
        at = connection.laddr  # an empty tuple where it has no address
        if connection.status == psutil.CONN_LISTEN and connection.pid is not None and at and at.port == port:
            found.append(connection.pid)
    return found


def _store_pid(url: str) -> int:
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        info: Any = client.info("server")
        return info["process_id"]


@contextlib.asynccontextmanager
async def own_site() -> AsyncIterator[OwnSite]:
    """Two API processes and eight worker processes under two supervisors."""
    async with installation(children=4) as at:
        yield OwnSite(at)


@contextlib.asynccontextmanager
async def found_site(urls: list[str], api_key: str | None) -> AsyncIterator[FoundSite]:
    """The installation at these URLs. Raises httpx.HTTPError if it does not answer."""
    with tempfile.TemporaryDirectory(prefix="ps-drill-") as folder:
        site = FoundSite(urls, api_key, Path(folder) / "effects")
        await site.look()
        yield site
