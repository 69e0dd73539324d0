"""The project's own docker-compose.yml, brought up beside whatever else runs on the machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.docker_engine import docker, needed_compose
from tests.service import ROOT, free_port


@dataclass(frozen=True)
class Project:
    """One project of Compose's. ``command``: how Compose is called here."""

    command: list[str]
    files: tuple[Path, ...]
    environment: Mapping[str, str]
    port: int
    name: str = field(default_factory=lambda: f"pipeserve-test-{uuid.uuid4().hex[:8]}")

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> str:
        """What Compose printed. It has to succeed."""
        files = [part for file in self.files for part in ("-f", str(file))]
        done = subprocess.run(
            [*self.command, *files, "-p", self.name, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"compose {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def containers(self, service: str | None = None, *, every: bool = False) -> list[str]:
        """The ids of its containers. ``every``: also of those that have ended."""
        labels = [f"label=com.docker.compose.project={self.name}"]
        if service is not None:
            labels.append(f"label=com.docker.compose.service={service}")
        filters = [part for label in labels for part in ("--filter", label)]
        return docker("ps", "--quiet", "--no-trunc", *filters, *(["--all"] if every else [])).split()

    def left(self) -> list[str]:
        """What of it is still there: containers, volumes, networks."""
        ours = ("--quiet", "--filter", f"label=com.docker.compose.project={self.name}")
        return [
            *self.containers(every=True),
            *docker("volume", "ls", *ours).split(),
            *docker("network", "ls", *ours).split(),
        ]

    def json(self, path: str) -> dict[str, object]:
        """What the API answers at ``path``."""
        return httpx.get(self.url + path, timeout=10).raise_for_status().json()


@contextlib.contextmanager
def project(*files: Path, **environment: str) -> Iterator[Project]:
    """A project that isn't up yet, and leaves nothing but images."""
    port = free_port()
    made = Project(needed_compose(), (ROOT / "docker-compose.yml", *files), {"PORT": str(port), **environment}, port)
    try:
        yield made
    except BaseException:
        print(made.compose("logs", "--no-color", "--tail", "40"))
        raise
    finally:
        made.compose("--profile", "edge", "down", "--volumes", "--remove-orphans", "--timeout", "5")
