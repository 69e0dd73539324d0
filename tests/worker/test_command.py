"""``python -m pipeserve_worker``: what it refuses to start with, in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.worker.harness import own_valkey

from pipeserve_worker.options import Options


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "PIPESERVE_"))}
    return subprocess.run(
        [sys.executable, "-m", "pipeserve_worker", *arguments],
        env=kept | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_without_a_deployment_it_names_the_variable_and_the_command(tmp_path: Path):
    ended = run(tmp_path)
    assert ended.returncode == 2
    assert "ZENML_PIPELINE_DEPLOYMENT_ID is not set" in ended.stderr
    assert "pipeserve deploy" in ended.stderr


def test_a_wrong_setting_is_named(tmp_path: Path):
    ended = run(tmp_path, "--processes", "0", ZENML_PIPELINE_DEPLOYMENT_ID="x")
    assert ended.returncode == 2
    assert "processes" in ended.stderr.lower()


def test_a_size_that_is_none_is_named(tmp_path: Path):
    ended = run(tmp_path, "--max-rss", "plenty", ZENML_PIPELINE_DEPLOYMENT_ID="x")
    assert ended.returncode == 2
    assert "PIPESERVE_MAX_RSS" in ended.stderr


def test_the_command_line_wins_over_the_environment_also_for_the_children(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIPESERVE_MAX_JOBS_PER_CHILD", "7")
    monkeypatch.setenv("PIPESERVE_MAX_RSS", "1GiB")
    options = Options.read(processes=1, concurrency=3, max_rss="512MiB")
    assert options.for_children() == {
        "PIPESERVE_WORKER_CONCURRENCY": "3",
        "PIPESERVE_MAX_JOBS_PER_CHILD": "7",
        "PIPESERVE_MAX_RSS": str(512 * 1024 * 1024),
    }


def test_a_deployment_that_the_store_does_not_hold_is_named(tmp_path: Path):
    with own_valkey() as valkey:
        ended = run(tmp_path, "--deployment", "nowhere", PIPESERVE_REDIS_URL=valkey.url)
    assert ended.returncode == 2
    assert "no deployment 'nowhere'" in ended.stderr
