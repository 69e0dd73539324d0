"""The registry of deployments."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from tests.contracts.stores import Ports

from pipeserve.sdk.deployment import Deployment

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def deployment(fingerprint: str, *, name: str = "demo", minutes: int = 0) -> Deployment:
    return Deployment(
        id=str(uuid.uuid4()),
        name=name,
        target="demo:serve",
        created_at=NOW + timedelta(minutes=minutes),
        fingerprint=fingerprint,
        pipeline_name="serve",
        capture={"code": True},
        steps=[],
        input_schema={},
        output_schema={},
    )


async def test_a_deployment_is_found_by_id_and_by_name(ports: Ports) -> None:
    saved = await ports.registry.save(deployment("f1"))
    assert await ports.registry.get(saved.id) == saved
    assert await ports.registry.get("demo") == saved
    assert await ports.registry.get("other") is None
    assert await ports.registry.get(str(uuid.uuid4())) is None


async def test_the_same_code_under_the_same_name_is_the_same_deployment(ports: Ports) -> None:
    first = await ports.registry.save(deployment("f1"))
    assert await ports.registry.save(deployment("f1", minutes=1)) == first
    assert (await ports.registry.save(deployment("f1", name="other"))).id != first.id
    assert len(await ports.registry.list()) == 2


async def test_a_name_stands_for_what_was_deployed_last(ports: Ports) -> None:
    old = await ports.registry.save(deployment("f1"))
    new = await ports.registry.save(deployment("f2", minutes=1))
    assert await ports.registry.get("demo") == new
    assert await ports.registry.list() == [new, old]
    await ports.registry.save(deployment("f1", minutes=2))  # back to the old code
    assert await ports.registry.get("demo") == old
