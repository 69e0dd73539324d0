"""Outputs read as the type that the caller asks for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from tests.client.conftest import CannedService, canned, job

from pipeserve.client import AsyncClient, Client, Result, UnexpectedOutputsError


class Summary(BaseModel):
    model_config = ConfigDict(strict=True)

    text: str
    at: datetime


NAMED = {"text": "a", "at": "2026-01-31T12:00:00Z"}
READ = Summary(text="a", at=datetime(2026, 1, 31, 12, tzinfo=UTC))


def completed(outputs: dict[str, Any]) -> dict[str, Any]:
    return {"job_id": "j", "outputs": outputs, "metadata": {"pipeline_name": "p"}, "execution_time": 0.5}


async def invoked(kind: str, service: CannedService, **parameters: Any) -> Result[Any]:
    if kind == "blocking":
        with Client(service.url) as client:
            return await asyncio.to_thread(client.invoke, **parameters)
    async with AsyncClient(service.url) as client:
        return await client.invoke(**parameters)


async def resulted(kind: str, service: CannedService, into: Any) -> Result[Any]:
    if kind == "blocking":
        with Client(service.url) as client:
            return await asyncio.to_thread(lambda: client.job("j").result(into=into))
    async with AsyncClient(service.url) as client:
        return await client.job("j").result(into=into)


both = pytest.mark.parametrize("kind", ["blocking", "async"])


@both
@pytest.mark.parametrize(
    ("outputs", "into", "read"),
    [
        pytest.param(NAMED, Summary, READ, id="named outputs"),
        pytest.param({"output": NAMED}, Summary, READ, id="one without a name"),
        pytest.param({"output": [1, 2]}, tuple[int, int], (1, 2), id="a plain type"),
        pytest.param({"output": 1, "other": 2}, dict[str, int], {"output": 1, "other": 2}, id="one of several"),
    ],
)
async def test_outputs_are_read_as_the_type_asked_for(
    service: CannedService, kind: str, outputs: dict[str, Any], into: Any, read: Any
) -> None:
    service.answer("POST /invoke", canned(completed(outputs)))
    service.answer("GET /jobs/j", canned(job("completed", outputs=outputs)))
    result = await invoked(kind, service, into=into, text="x")
    assert (result.outputs, result.metadata, result.execution_time) == (read, {"pipeline_name": "p"}, 0.5)
    assert service.received[0].json == {"parameters": {"text": "x"}}
    assert (await resulted(kind, service, into)).outputs == read


@both
async def test_outputs_that_do_not_fit_say_where_and_never_what(service: CannedService, kind: str) -> None:
    service.answer("POST /invoke", canned(completed({"text": ["confidential"]})))
    with pytest.raises(UnexpectedOutputsError) as caught:
        await invoked(kind, service, into=Summary)
    assert str(caught.value).startswith("the outputs don't fit Summary: text: ")
    assert "at: Field required" in str(caught.value)
    assert "confidential" not in str(caught.value)
    assert caught.value.job_id == "j"


async def test_a_parameter_called_into_goes_into_the_mapping(service: CannedService) -> None:
    service.answer("POST /invoke", canned(completed({"output": 1})))
    with Client(service.url) as client:
        result = await asyncio.to_thread(client.invoke, {"into": "French"}, into=int)
    assert (result.outputs, service.received[0].json) == (1, {"parameters": {"into": "French"}})


def test_a_type_with_arguments_is_named_whole() -> None:
    with pytest.raises(UnexpectedOutputsError, match=r"don't fit list\[int\]: the value: "):
        Result("j", {"output": "a"}).into(list[int])
