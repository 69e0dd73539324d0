"""What becomes of a call's job: when its caller cancels, when this process ends, when the service changes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from tests.api.harness import Served, wait_until
from tests.api.pipelines import shout
from tests.cli.conftest import COMMAND, environment
from tests.client.conftest import CannedService, canned, canned_server, service
from tests.mcp.harness import ERAS, agent_by, agent_on_stdio, served_with_worker, speaking_http, text_of
from tests.mcp.pipelines import two_steps, waiting

__all__ = ["canned_server", "service"]  # fixtures

pytestmark = pytest.mark.e2e


async def the_job(served: Served) -> dict[str, Any]:
    """The one job that the service has, or nothing yet."""
    jobs = (await served.http.get("/jobs")).json()["jobs"]
    assert len(jobs) <= 1
    return jobs[0] if jobs else {}


async def until_it_is(status: str, served: Served) -> None:
    async def reached() -> bool:
        return (await the_job(served)).get("status") == status

    await wait_until(reached, f"the job is {status}", seconds=10)


@pytest.mark.parametrize(("transport", "era"), [(way, era) for way in ("stdio", "http") for era in ERAS])
async def test_a_cancel_cancels_the_job(transport: str, era: str, tmp_path: Path) -> None:
    async with served_with_worker(waiting) as served, agent_by(transport, served.url, tmp_path, era=era) as agent:
        call = asyncio.create_task(agent.call("waiting"))
        await until_it_is("running", served)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_it_is("canceled", served)
        assert (await the_job(served))["cancel_reason"] == "canceled by its MCP client"


class RawClient:
    """Speaks the protocol by hand, so that it can leave in any way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def send(self, method: str, params: dict[str, Any], *, number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
        self._in.write(json.dumps(message).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        return json.loads(await self._out.readline())

    def leave(self) -> None:
        self._in.close()


async def test_a_job_goes_on_when_its_caller_closes_the_connection(tmp_path: Path) -> None:
    async with served_with_worker(waiting) as served:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "mcp", "--url", served.url),
            env=environment(tmp_path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        client = RawClient(process)
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        client.send("initialize", about, number=1)
        assert (await client.answer())["result"]["serverInfo"]["name"] == "pipeserve"
        client.send("notifications/initialized", {})
        client.send("tools/call", {"name": "waiting", "arguments": {}}, number=2)
        await until_it_is("running", served)
        client.leave()
        assert await process.wait() == 0
        assert (await the_job(served))["status"] == "running"


async def test_a_job_goes_on_when_the_process_is_told_to_end(tmp_path: Path) -> None:
    async with served_with_worker(waiting) as served:
        async with speaking_http(tmp_path, "--url", served.url) as speaking:
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "waiting", "arguments": {}}}
            about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "r", "version": "1"}}
            headers = {"Accept": "application/json, text/event-stream"}
            opened = await served.http.post(
                speaking.address,
                json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": about},
                headers=headers,
            )
            headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
            call = asyncio.create_task(served.http.post(speaking.address, json=body, headers=headers))
            await until_it_is("running", served)
            speaking.process.terminate()
            await speaking.process.wait()
            assert "Traceback" not in speaking.said.read_text()
            await asyncio.wait([call])
            call.exception()
        assert (await the_job(served))["status"] == "running"


async def test_a_job_that_an_agent_started_has_a_label(tmp_path: Path) -> None:
    async with served_with_worker(shout) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        await agent.call("shout", text="a")
        assert (await the_job(served))["labels"] == {"source": "mcp"}


def info(name: str, deployment: str) -> Any:
    schema = {"type": "object", "properties": {}}
    pipeline = {"name": name, "steps": [], "dynamic": False, "input_schema": schema, "output_schema": schema}
    return canned({"pipeline": pipeline, "deployment": {"id": deployment}, "version": "1"})


async def test_another_deployment_is_another_tool_and_the_client_is_told(
    service: CannedService, tmp_path: Path
) -> None:
    # The first is asked for at the start.
    service.answer("GET /info", info("old", "1"), info("old", "1"), info("new", "2"))
    async with agent_on_stdio(tmp_path, "--url", service.url, era="legacy") as agent:
        assert [tool.name for tool in (await agent.client.list_tools()).tools] == ["old"]
        with pytest.raises(MCPError, match="there is no tool 'old' now; there is new"):
            await agent.call("old")
        await wait_until(lambda: "notifications/tools/list_changed" in agent.notified, "the client is told")
        assert [tool.name for tool in (await agent.client.list_tools()).tools] == ["new"]


async def test_a_name_that_no_tool_may_have_is_made_one_that_may(service: CannedService, tmp_path: Path) -> None:
    service.answer("GET /info", info("größe schätzen." + "x" * 100, "1"))
    async with agent_on_stdio(tmp_path, "--url", service.url) as agent:
        [tool] = (await agent.client.list_tools()).tools
    assert tool.name == ("gr__e_sch_tzen_" + "x" * 100)[:56]


async def test_without_a_service_the_tools_are_an_error_and_they_are_there_once_it_is(tmp_path: Path) -> None:
    async with agent_on_stdio(tmp_path, "--url", "http://127.0.0.1:9") as agent:
        with pytest.raises(MCPError, match="is the service running there"):
            await agent.client.list_tools()
        result = await agent.call("shout")
        assert result.is_error
        assert "unreachable" in text_of(result)
    assert "no answer from http://127.0.0.1:9" in (tmp_path / "errors").read_text()


async def test_a_call_that_loses_sight_of_its_job_says_where_to_find_it(service: CannedService, tmp_path: Path) -> None:
    service.answer("GET /info", info("lost", "1"))
    service.answer("POST /invoke", canned({"job_id": "j", "status": "pending"}, 202))
    service.answer("GET /stream/j", canned({"a": "proxy's page"}))
    async with agent_on_stdio(tmp_path, "--url", service.url) as agent:
        result = await agent.call("lost")
    assert result.is_error
    assert "unexpected_reply" in text_of(result)
    assert "job://j/result" in text_of(result)


# The tools for jobs


async def test_only_jobs_asked_for_have_tools(tmp_path: Path) -> None:
    async with served_with_worker(shout) as served, agent_on_stdio(tmp_path, "--jobs", "--url", served.url) as agent:
        tools = {tool.name: tool for tool in (await agent.client.list_tools()).tools}
    assert list(tools) == ["shout", "shout_submit", "shout_status", "shout_cancel"]
    assert tools["shout_status"].annotations is not None
    assert tools["shout_status"].annotations.read_only_hint is True
    assert tools["shout_submit"].input_schema == tools["shout"].input_schema


async def test_a_long_job_is_started_looked_at_and_canceled(tmp_path: Path) -> None:
    async with served_with_worker(waiting) as served, agent_on_stdio(tmp_path, "--jobs", "--url", served.url) as agent:
        job_id = (await agent.call("waiting_submit")).structured_content["job_id"]
        await until_it_is("running", served)
        seen = await agent.call("waiting_status", job_id=job_id)
        assert (seen.structured_content["status"], seen.structured_content["job_id"]) == ("running", job_id)
        assert not (await agent.call("waiting_cancel", job_id=job_id)).is_error
        await until_it_is("canceled", served)
        ended = await agent.call("waiting_status", job_id=job_id)
        assert ended.structured_content["status"] == "canceled"
        again = await agent.call("waiting_cancel", job_id="no-such-job")
        assert again.is_error
        assert "not_found" in text_of(again)
        nameless = await agent.call("waiting_cancel")
        assert "'job_id'" in text_of(nameless)


async def test_the_status_of_a_completed_job_has_its_outputs(tmp_path: Path) -> None:
    async with served_with_worker(shout) as served, agent_on_stdio(tmp_path, "--jobs", "--url", served.url) as agent:
        job_id = (await agent.call("shout_submit", text="a")).structured_content["job_id"]
        await until_it_is("completed", served)
        seen = await agent.call("shout_status", job_id=job_id)
    assert seen.structured_content == {"loud": "A!", "length": 2}


# Resources


async def test_what_a_job_left_can_be_read(tmp_path: Path) -> None:
    async with served_with_worker(two_steps) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        result = await agent.call("two_steps", text="glass")
        assert result.meta is not None
        job = f"job://{result.meta['pipeserve/job_id']}"
        assert [found.uri for found in (await agent.client.list_resources()).resources] == [job]
        assert json.loads((await agent.read(job)).text)["status"] == "completed"
        assert json.loads((await agent.read(f"{job}/result")).text) == result.structured_content
        assert "WARNING first: careful with glass" in (await agent.read(f"{job}/logs")).text
        assert "then ran for" in (await agent.read(f"{job}/explain")).text
        for wrong in ("job://no-such-job", f"{job}/nothing", "file:///etc/passwd", f"{job}/outputs/none"):
            with pytest.raises(MCPError):
                await agent.read(wrong)
        templates = (await agent.client.list_resource_templates()).resource_templates
    assert "job://{id}/result" in [template.uri_template for template in templates]
