"""Schemathesis against a whole service: what its OpenAPI document says is so, whatever a stranger sends.

``PIPESERVE_FUZZ_EXAMPLES=500`` hunts for longer, with other examples each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
from tests.service import ROOT, ServeFixture

pytestmark = pytest.mark.e2e

EXAMPLES = os.environ.get("PIPESERVE_FUZZ_EXAMPLES")
"""For each operation and phase; not set: a few, and the same ones each time."""
OWN = "not_a_server_error,positive_data_acceptance,negative_data_rejection"
"""Which checks ``schemathesis_hooks`` has in its own form."""
KEY = "a-key-that-only-this-test-has-0123456789"


@pytest.mark.timeout(1800 if EXAMPLES else 240)
@pytest.mark.parametrize("key", [None, KEY], ids=["open", "with a key"])
def test_no_request_shows_the_service_to_be_other_than_it_says(
    serve: ServeFixture, tmp_path: Path, key: str | None
) -> None:
    environment = {} if key is None else {"ZENML_SERVING_AUTH_KEY": key}
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with serve("tests/fuzz/pipelines.py:survey", workers=1, **environment) as service:
        document = httpx.get(f"{service.url}/openapi.json", headers=headers).json()
        operations = sum(len(methods) for methods in document["paths"].values())
        done = schemathesis(f"{service.url}/openapi.json", headers, tmp_path)
        assert done.returncode == 0, done.stdout + service.log[-2000:]
        assert "internal_error" not in service.log
    assert f"{operations} selected / {operations} total" in done.stdout
    counts = cases(tmp_path / "events.ndjson")
    assert {"coverage", "fuzzing", "stateful"} <= set(counts)
    assert sum(counts.values()) > 20 * operations
    print(operations, "operations:", dict(counts))


def schemathesis(url: str, headers: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it; its exit status is 1 when it has found something."""
    bound = ["--max-examples", EXAMPLES] if EXAMPLES else ["--max-examples", "25", "--generation-deterministic"]
    report = ["--report", "ndjson", "--report-ndjson-path", str(folder / "events.ndjson")]
    sent = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    command = ["run", url, *bound, *report, *sent, "--exclude-checks", OWN]
    return subprocess.run(
        [Path(sys.executable).with_name("st"), *command, "--request-timeout", "20", "--no-color"],
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def cases(report: Path) -> Counter[str]:
    """How many requests each phase sent."""
    counts: Counter[str] = Counter()
    for line in report.read_text().splitlines():
        event = json.loads(line).get("ScenarioFinished")
        if event is not None:
            counts[event["phase"]] += len(event["recorder"].get("cases", ()))
    return counts
