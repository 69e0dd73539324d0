"""A Docker engine for the tests that need one, marked ``docker``.

On a laptop without one they are skipped. Where ``CI`` is set that is a failure, unless ``.ci/run`` has tried to start
one and says why it could not, in ``PIPESERVE_NO_DOCKER``: some machines can't have an engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tests.programs import missing


def needed_engine() -> None:
    """Return if an engine answers; skip or fail the test otherwise."""
    reason = _unusable()
    if reason is None:
        return
    if os.environ.get("CI") and not os.environ.get("PIPESERVE_NO_DOCKER"):
        pytest.fail(f"no Docker engine: {reason}")
    pytest.skip(f"no Docker engine: {os.environ.get('PIPESERVE_NO_DOCKER') or reason}")


def needed_compose() -> list[str]:
    """The command of Compose: the engine's plugin, or the program of its own."""
    needed_engine()
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and _run([*command, "version"]).returncode == 0:
            return command
    return missing("Compose is not installed")


def docker(*arguments: str) -> str:
    """What ``docker …`` printed. It has to succeed."""
    done = _run(["docker", *arguments])
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def has_image(name: str) -> bool:
    """Whether the engine has this image, or could fetch it."""
    return any(_run(["docker", *ask, name]).returncode == 0 for ask in (["image", "inspect"], ["pull", "--quiet"]))


def _unusable() -> str | None:
    if shutil.which("docker") is None:
        return "docker is not installed"
    try:
        done = _run(["docker", "info", "--format", "{{.ServerVersion}}"])
    except subprocess.TimeoutExpired:
        return "the engine does not answer"
    return None if done.returncode == 0 and done.stdout.strip() else done.stderr.strip() or "the engine does not answer"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="session")
def redis_container() -> Iterator[str]:
    """The URL of a Redis in a container."""
    needed_engine()
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import ExecWaitStrategy  # here: a run without Docker needs none of it

    container = DockerContainer("redis:7-alpine")
    published: Any = ("127.0.0.1", None)  # the library knows of ports alone, and would publish it to the network
    container.ports = {"6379/tcp": published}
    container.with_command(["redis-server", "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"])
    container.waiting_for(ExecWaitStrategy(["redis-cli", "ping"]))
    with container:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
