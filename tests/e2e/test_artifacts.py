"""Large results with the service as a user runs it: what a worker process writes, the API process sends."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from tests.service import ROOT, ServeFixture

pytestmark = pytest.mark.e2e
SIZE = 50_000


def test_what_a_worker_wrote_is_downloaded_from_the_api(serve: ServeFixture) -> None:
    target = ROOT / "tests" / "e2e" / "pipelines" / "large.py"
    with serve(f"{target}:squares") as service, httpx.Client(base_url=service.url, timeout=20) as http:
        accepted = http.post("/invoke", params={"mode": "async"}, json={"parameters": {"size": SIZE}}).json()
        job: dict[str, Any] = http.get(accepted["links"]["self"], params={"wait": 15}).json()
        assert job["status"] == "completed"
        ref = job["outputs"]["squares"]["$artifact"]
        download = http.get(ref["href"])
        np.testing.assert_array_equal(np.load(io.BytesIO(download.content)), np.arange(SIZE) ** 2)

        whole = http.post("/invoke", json={"parameters": {"size": SIZE}}).json()
        assert whole["outputs"] == {"squares": [number**2 for number in range(SIZE)]}
