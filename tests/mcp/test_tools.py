"""A served pipeline as a tool: by both transports, and by the newest protocol and the earlier ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jsonschema
import pytest
from mcp.shared.exceptions import MCPDeprecationWarning
from tests.api.pipelines import shout
from tests.mcp.harness import ERAS, agent_by, agent_on_stdio, served_with_worker, text_of
from tests.mcp.pipelines import a_png, drawing, failing, greet, lying, two_steps, two_texts
from tests.service import ServeFixture

pytestmark = pytest.mark.e2e

EVERY_WAY = pytest.mark.parametrize(("transport", "era"), [(way, era) for way in ("stdio", "http") for era in ERAS])


@EVERY_WAY
async def test_the_pipeline_is_a_tool_with_its_words_and_schemas(transport: str, era: str, tmp_path: Path) -> None:
    async with served_with_worker(greet) as served, agent_by(transport, served.url, tmp_path, era=era) as agent:
        [tool] = (await agent.client.list_tools()).tools
    assert (tool.name, tool.title) == ("greet", "greet")
    assert tool.description is not None
    assert tool.description.startswith("Greets a person.")
    jsonschema.Draft202012Validator.check_schema(tool.input_schema)
    assert tool.input_schema["type"] == "object"
    assert tool.input_schema["$defs"]["Tone"]["enum"] == ["kind", "rude"]
    assert tool.input_schema["$defs"]["Person"]["required"] == ["name"]
    assert tool.input_schema["properties"]["tone"]["default"] == "kind"
    assert set(tool.input_schema["properties"]) == {"person", "tone", "mark"}
    assert tool.output_schema is not None
    assert tool.output_schema["properties"]["greeting"]["type"] == "string"


@EVERY_WAY
async def test_a_call_gives_the_outputs_as_structure_and_as_text(transport: str, era: str, tmp_path: Path) -> None:
    async with served_with_worker(greet) as served, agent_by(transport, served.url, tmp_path, era=era) as agent:
        result = await agent.call("greet", person={"name": "Ada"}, tone="rude", mark="?")
    assert not result.is_error
    assert result.structured_content == {"greeting": "Oi, Ada?"}
    assert json.loads(text_of(result)) == {"greeting": "Oi, Ada?"}


@EVERY_WAY
async def test_progress_grows_and_names_the_steps(transport: str, era: str, tmp_path: Path) -> None:
    async with served_with_worker(two_steps) as served, agent_by(transport, served.url, tmp_path, era=era) as agent:
        await agent.call("two_steps", watch=True)
    values = [value for value, _, _ in agent.progress]
    assert values == sorted(set(values))
    assert 0 <= values[0] < values[-1] <= 100
    assert {total for _, total, _ in agent.progress} == {100.0}
    messages = [message for _, _, message in agent.progress]
    assert messages[0] == "0 of 2 steps: first"
    assert "1 of 2 steps: second" in messages


async def test_a_caller_who_asked_for_no_progress_is_told_none(tmp_path: Path) -> None:
    async with served_with_worker(two_steps) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        await agent.call("two_steps")
    assert "notifications/progress" not in agent.notified
    assert agent.log == []  # nor logs: by the newest protocol each request asks for them


@pytest.mark.parametrize("era", ERAS)
async def test_what_steps_log_comes_at_its_level_to_those_who_admit_it(era: str, tmp_path: Path) -> None:
    level = "info" if era == "auto" else None
    async with (
        served_with_worker(two_steps) as served,
        agent_on_stdio(tmp_path, "--url", served.url, era=era, log_level=level) as agent,
    ):
        await agent.call("two_steps", text="glass")
    said = [(line.level, line.logger, line.data) for line in agent.log]
    assert said == [("warning", "first", "careful with glass"), ("info", "first", "reading")]


async def test_a_session_may_set_another_level(tmp_path: Path) -> None:
    async with (
        served_with_worker(two_steps) as served,
        agent_on_stdio(tmp_path, "--url", served.url, era="legacy") as agent,
    ):
        with pytest.warns(MCPDeprecationWarning):
            await agent.client.set_logging_level("error")
        await agent.call("two_steps")
    assert agent.log == []


@EVERY_WAY
async def test_parameters_that_do_not_fit_are_named(transport: str, era: str, tmp_path: Path) -> None:
    async with served_with_worker(shout) as served, agent_by(transport, served.url, tmp_path, era=era) as agent:
        result = await agent.call("shout", txt="a", times="many")
    assert result.is_error
    said = text_of(result)
    assert "invalid_parameters" in said
    for words in ("parameter 'text' is missing", "parameter 'txt' is unknown", "'times'"):
        assert words in said


async def test_a_failure_is_told_in_plain_words_without_a_traceback(tmp_path: Path) -> None:
    async with served_with_worker(failing) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        polite = await agent.call("failing", kind="polite")
        rude = await agent.call("failing", kind="rude")
    assert polite.is_error
    assert text_of(polite).startswith("Not Found (no_such_document): there is no document 7")
    assert "Step: raises" in text_of(polite)
    assert rude.is_error
    assert "(step_failed)" in text_of(rude)
    assert "Traceback" not in text_of(rude)
    assert "pipelines.py" not in text_of(rude)


async def test_what_steps_show_is_in_the_result(tmp_path: Path) -> None:
    async with served_with_worker(drawing) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        result = await agent.call("drawing")
    _, image, note, page = result.content
    assert image.type == "image"
    assert (image.mime_type, base64.b64decode(image.data)) == ("image/png", a_png())
    assert note.type == "text"
    assert note.text == "# Seen"
    assert page.type == "resource"
    assert page.resource.mime_type == "text/html"


async def test_an_output_that_is_too_large_is_a_link_that_can_be_read(tmp_path: Path) -> None:
    async with served_with_worker(two_texts) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        both = await agent.call("two_texts", small=60_000, large=60_000)  # together too much
        assert list(both.structured_content) == ["small"]
        [left_out] = [block for block in both.content if block.type == "resource_link"]
        assert "'large' is left out" in text_of(both)
        assert len(json.loads((await agent.read(left_out.uri)).text)) == 60_000


async def test_an_output_that_is_kept_as_a_file_is_a_link_to_it(serve: ServeFixture, tmp_path: Path) -> None:
    with serve("tests/mcp/pipelines.py:two_texts") as service:
        async with agent_on_stdio(tmp_path, "--url", service.url) as agent:
            result = await agent.call("two_texts", large=100_000)
            assert result.structured_content == {"small": "x"}
            [link] = [block for block in result.content if block.type == "resource_link"]
            assert "/artifacts/" in link.uri
            assert link.size == 100_002
            assert len(base64.b64decode((await agent.read(link.uri)).blob)) == 100_002


async def test_an_output_that_breaks_its_declared_form_does_not_spoil_the_others(tmp_path: Path) -> None:
    async with served_with_worker(lying) as served, agent_on_stdio(tmp_path, "--url", served.url) as agent:
        result = await agent.call("lying")
    assert result.structured_content == {"text": "xx"}
    assert "Output 'count' is not of its declared form: \"three\"" in text_of(result)
