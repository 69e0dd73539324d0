"""Runs ``pipeserve serve`` as a user would: a process with its store, API process and workers, on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import psutil

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Service:
    """A running ``pipeserve serve``."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        """All that it and its children printed."""
        return self.log_file.read_text()

    def descendants(self) -> list[psutil.Process]:
        """Every process that it started, and theirs."""
        return psutil.Process(self.process.pid).children(recursive=True)


class ServeFixture(Protocol):
    """Starts a service for the length of a ``with`` block."""

    def __call__(self, target: str, *, workers: int = 1, **environment: str) -> AbstractContextManager[Service]: ...


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def serve_target(target: str, folder: Path, *, workers: int, environment: dict[str, str]) -> Iterator[Service]:
    """Serve ``target`` until the block ends; then stop it as Ctrl-C would, and see that nothing is left running."""
    port = free_port()
    log_file = folder / "serve.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("pipeserve"),
                "serve",
                target,
                "--port",
                str(port),
                "--workers",
                str(workers),
            ],
            cwd=ROOT,
            env={**os.environ, "PIPESERVE_DATA_DIR": str(folder / "data"), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(f"http://127.0.0.1:{port}", process, log_file)
    try:
        _wait_until_ready(service)
        yield service
        family = service.descendants() if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        process.wait(10)
        _, alive = psutil.wait_procs(family, timeout=2)
        assert not alive, f"left running: {alive}"
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in service.descendants():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.wait()


def _wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + 30
    while True:
        if service.process.poll() is not None:
            raise AssertionError(f"serve ended with {service.process.returncode}:\n{service.log}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(service.url + "/health/ready").status_code == 200:
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not ready in 30 s:\n{service.log}")
        time.sleep(0.05)
