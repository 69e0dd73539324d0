"""nginx with the very file of deploy/nginx, before the replicas of a test, as a user who is not root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from tests.programs import needed
from tests.service import ROOT, free_port
from tests.worker.harness import eventually

from pipeserve.parent import preexec_die_with_parent

CONFIGURATION = ROOT / "deploy" / "nginx" / "nginx.conf"
REPLICA = "server api:8001 "
"""How the line begins that names them."""


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "errors.log").read_text()

    @property
    def access_log(self) -> str:
        """A line for each request that has ended."""
        return (self.folder / "access.log").read_text()

    def calls(self, path: str) -> list[dict[str, Any]]:
        """The access log's lines about ``path``."""
        return [call for line in self.access_log.splitlines() if (call := orjson.loads(line))["path"] == path]


def configuration(folder: Path, port: int, replicas: Sequence[str]) -> str:
    """The file with the places that it says are yours to set: replicas, port and paths; nothing else."""
    text = CONFIGURATION.read_text()
    [line] = [line for line in text.splitlines(keepends=True) if REPLICA in line]
    lines = (line.replace(REPLICA, f"server {httpx.URL(url).netloc.decode()} ") for url in replicas)
    changes = {
        line: "".join(lines),
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "/tmp/nginx": f"{folder}/nginx",
        "/dev/stdout": f"{folder}/access.log",
    }
    for there, here in changes.items():
        assert there in text, f"{CONFIGURATION} has no {there}"
        text = text.replace(there, here)
    return text


@contextlib.asynccontextmanager
async def nginx(replicas: Sequence[str]) -> AsyncIterator[Proxy]:
    """nginx before these two API processes, once it passes requests on."""
    program = needed("nginx", "apt-get install nginx-light")
    nobody = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="ps-nginx-"))
    if nobody is not None:
        shutil.chown(folder, nobody)
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(configuration(folder, port, replicas))
    file.chmod(0o644)
    with (folder / "errors.log").open("wb") as errors:
        process = subprocess.Popen(
            [program, "-c", str(file), "-g", "daemon off;"],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd=folder,
            user=nobody,
            preexec_fn=preexec_die_with_parent(),  # noqa: PLW1509 - it only calls prctl
        )
    proxy = Proxy(f"http://127.0.0.1:{port}", folder, process)

    async def passes_on() -> bool:
        assert process.poll() is None, f"nginx ended:\n{proxy.errors}"
        async with httpx.AsyncClient() as http:
            with contextlib.suppress(httpx.TransportError):
                return (await http.get(f"{proxy.url}/health/live")).status_code == 200
        return False

    try:
        await eventually(passes_on, "nginx passes requests on", seconds=10)
        yield proxy
        assert process.poll() is None, f"nginx ended:\n{proxy.errors}"
    finally:
        process.terminate()  # its workers end with it
        try:
            await asyncio.to_thread(process.wait, 10)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
