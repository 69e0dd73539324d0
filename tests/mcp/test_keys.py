"""Who may call: the service's key, the key over HTTP, the addresses that it listens on, and what is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from mcp.shared.exceptions import MCPError
from tests.api.pipelines import shout
from tests.cli.conftest import COMMAND, Pipeserve, pipeserve
from tests.mcp.harness import agent_on_stdio, agent_over_http, served_with_worker, speaking_http, text_of

__all__ = ["pipeserve"]  # a fixture

pytestmark = pytest.mark.e2e

KEYED = {"auth_key": "right"}


@pytest.mark.parametrize("arguments", [(), ("--api-key", "wrong")], ids=["missing", "wrong"])
async def test_a_key_that_is_missing_or_wrong_is_told_in_words(arguments: tuple[str, ...], tmp_path: Path) -> None:
    async with (
        served_with_worker(shout, service=KEYED) as served,
        agent_on_stdio(tmp_path, "--url", served.url, *arguments) as agent,
    ):
        with pytest.raises(MCPError, match="unauthorized"):
            await agent.client.list_tools()
        result = await agent.call("shout", text="a")
        assert result.is_error
        assert "PIPESERVE_API_KEY" in text_of(result)


async def test_the_key_may_come_from_the_environment(tmp_path: Path) -> None:
    env = {"PIPESERVE_API_KEY": "right"}
    async with (
        served_with_worker(shout, service=KEYED) as served,
        agent_on_stdio(tmp_path, env={**env, "PIPESERVE_URL": served.url}) as agent,
    ):
        assert (await agent.call("shout", text="a")).structured_content == {"loud": "A!", "length": 2}


async def test_over_http_callers_need_the_key_that_the_process_has(tmp_path: Path) -> None:
    async with (
        served_with_worker(shout, service=KEYED) as served,
        speaking_http(tmp_path, "--url", served.url, "--api-key", "right") as speaking,
    ):
        for key in (None, "Bearer wrong", "Basic right", "right"):
            headers = {} if key is None else {"Authorization": key}
            refused = await served.http.post(speaking.address, json={}, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        async with agent_over_http(speaking.address, key="right") as agent:
            assert not (await agent.call("shout", text="a")).is_error
        assert "right" not in speaking.said.read_text()


async def test_a_page_that_rebinds_its_name_is_refused(tmp_path: Path) -> None:
    async with (
        served_with_worker(shout) as served,
        speaking_http(tmp_path, "--url", served.url) as speaking,
        httpx.AsyncClient() as http,
    ):
        foreign = await http.post(speaking.address, json={}, headers={"Host": "evil.example"})
        assert foreign.status_code == 421
        other = await http.post(speaking.address, json={}, headers={"Origin": "http://evil.example"})
        assert other.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_it_does_not_open_the_service_to_strangers(host: str, pipeserve: Pipeserve) -> None:
    done = await pipeserve("mcp", "--transport", "http", "--host", host)
    assert done.code == 2
    assert "PIPESERVE_API_KEY" in done.err
    assert "Traceback" not in done.err


async def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path, pipeserve: Pipeserve) -> None:
    async with served_with_worker(shout) as served:
        done = await pipeserve("mcp", "--transport", "http", "--port", served.url.rpartition(":")[2])
    assert done.code == 2
    assert "choose another --port" in done.err


async def test_without_the_sdk_it_says_which_extra_brings_it(
    pipeserve: Pipeserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = "import sys; sys.modules['mcp'] = None; from pipeserve.cli.main import run; run()"
    monkeypatch.setattr("tests.cli.conftest.COMMAND", (sys.executable, "-c", without))
    done = await pipeserve("mcp")
    assert COMMAND[-1] != without
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "pipeserve: this command needs mcp, which the extra 'mcp' brings: pip install 'pipeserve[mcp]'\n"
    )
