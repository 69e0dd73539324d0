"""A service that strangers can call says so; one that must not be is not started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.api.harness import serving
from tests.api.pipelines import shout

from pipeserve.settings import ServiceSettings
from pipeserve_api.exposure import check_exposure, exposure


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_loopback_address_is_open_to_nobody_else(host: str) -> None:
    assert exposure(ServiceSettings.from_environment(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.0.2.1", "service.example"])
def test_any_other_address_is_open_unless_a_key_is_set(host: str) -> None:
    assert host in (exposure(ServiceSettings.from_environment(host=host)) or "")
    assert exposure(ServiceSettings.from_environment(host=host, auth_key="k")) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "OPEN TO STRANGERS"),
        ({"keys_file": "keys.toml"}, "PIPESERVE_TOKEN_SECRET"),
        ({"keys_file": "keys.toml", "token_secret": "s"}, ""),
        ({"host": "0.0.0.0", "auth_key": "k"}, ""),
        ({}, ""),
    ],
)
def test_the_log_says_at_the_start_what_is_open(
    settings: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_exposure(ServiceSettings.from_environment(**settings))
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


async def test_readiness_tells_that_strangers_can_call() -> None:
    async with serving(shout, service={"host": "0.0.0.0"}) as open_to_all:
        answer = await open_to_all.http.get("/health/ready")
        assert answer.status_code == 200
        assert "No key is set" in answer.json()["warnings"][0]
    async with serving(shout) as local:
        assert "warnings" not in (await local.http.get("/health/ready")).json()


@pytest.mark.e2e
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_that_requires_keys_does_not_start_without(tmp_path: Path, workers: str) -> None:
    environment = os.environ | {
        "PIPESERVE_REQUIRE_AUTH": "true",
        "ZENML_SERVICE_WORKERS": workers,
        "ZENML_SERVICE_PORT": "0",
        "PIPESERVE_DATA_DIR": str(tmp_path / "data"),
        "ZENML_PIPELINE_DEPLOYMENT_ID": "none",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipeserve_api"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "PIPESERVE_REQUIRE_AUTH" in done.stderr
    assert "Traceback" not in done.stderr
