"""What steps show: drawn at once, kept with the job, and served so that no browser runs it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Annotated, Any

import pandas
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tests.api.harness import Served, serving, wait_until
from tests.capture.places import places

from pipeserve import HTML, PNG, Capture, Markdown, Pipeline, get_context, pipeline, step, visualize
from pipeserve.runtime.capture.visuals import MOST, MOST_BYTES
from pipeserve.testing import TestRun, run_pipeline_async


def pixel() -> PNG:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, format="PNG")
    return PNG(buffer.getvalue())


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([1, 2, 3])
    return drawn


class Plot:
    """As plotly's figures are for notebooks."""

    def _repr_html_(self) -> str:
        return "<div>a plot</div>"


class Picture:
    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        return bytes(pixel()), {"width": 1}


def showing(show: Callable[[], object], capture: Capture | None = None) -> Pipeline[..., Any]:
    @step
    def draw() -> int:
        show()
        return 1

    @pipeline(capture=capture)
    def serve() -> int:
        return draw()

    return serve


def returning(make: Callable[[], Any]) -> Pipeline[..., Any]:
    @step
    def draw() -> Any:
        return make()

    @step
    def drop(value: Any) -> int:
        return 1

    @pipeline
    def serve() -> int:
        return drop(draw())

    return serve


def shown(run: TestRun) -> list[dict[str, Any]]:
    return [event.data for event in run.raise_for_status().events if event.event_type == "visualization"]


KINDS: dict[str, tuple[Callable[[], Any], str, bytes]] = {
    "HTML": (lambda: HTML("<h1>é</h1>"), "text/html", "<h1>é</h1>".encode()),
    "Markdown": (lambda: Markdown("# it"), "text/markdown", b"# it"),
    "PNG": (pixel, "image/png", b"\x89PNG"),
    "image": (lambda: Image.new("CMYK", (2, 2)), "image/png", b"\x89PNG"),
    "table": (lambda: pandas.DataFrame({"a<b>": [1, 2]}), "text/html", b"a&lt;b&gt;"),
    "figure": (figure, "image/png", b"\x89PNG"),
}
NOTEBOOKS: dict[str, tuple[Callable[[], Any], str, bytes]] = {
    "_repr_html_": (Plot, "text/html", b"a plot"),
    "_repr_png_": (Picture, "image/png", b"\x89PNG"),
}


async def fetched(served: Served, job_id: str, index: int = 1) -> tuple[str, bytes]:
    answer = await served.http.get(f"/jobs/{job_id}/visualizations/{index}")
    assert answer.status_code == 200, answer.text
    return answer.headers["content-type"].split(";")[0], answer.content


@pytest.mark.parametrize("kind", [*KINDS, *NOTEBOOKS])
async def test_what_visualize_takes_is_served(kind: str) -> None:
    make, media_type, content = {**KINDS, **NOTEBOOKS}[kind]
    async with serving(showing(lambda: visualize(make(), "mine"))) as served:
        job_id = (await served.invoke()).json()["job_id"]
        [listed] = (await served.http.get(f"/jobs/{job_id}/visualizations")).json()["visualizations"]
        found, data = await fetched(served, job_id)
    assert (found, media_type) == (media_type, listed["media_type"])
    assert content in data
    assert listed == {
        "index": 1,
        "name": "mine",
        "step_name": "draw",
        "media_type": media_type,
        "size": len(data),
        "href": f"/jobs/{job_id}/visualizations/1",
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_step_returns_shows_itself(kind: str) -> None:
    make, media_type, _ = KINDS[kind]
    [told] = shown(await run_pipeline_async(returning(make)))
    assert (told["index"], told["name"], told["media_type"]) == (1, "draw", media_type)


async def test_what_stands_in_a_tuple_shows_itself_and_has_its_outputs_name() -> None:
    @step
    def draw() -> tuple[Annotated[int, "count"], Annotated[HTML, "page"]]:
        return 3, HTML("<p>")

    @pipeline
    def serve() -> Any:
        return draw()

    run = await run_pipeline_async(serve)
    assert [told["name"] for told in shown(run)] == ["page"]
    assert run.outputs == {"count": 3, "page": "<p>"}


@pytest.mark.parametrize("make", [Plot, lambda: "<h1>text</h1>", lambda: [HTML("<p>")]])
async def test_other_values_show_themselves_to_nobody(make: Callable[[], Any]) -> None:
    assert shown(await run_pipeline_async(returning(make))) == []


async def test_a_browser_runs_nothing_of_it() -> None:
    async with serving(showing(lambda: visualize(HTML("<script>alert(1)</script>")))) as served:
        job_id = (await served.invoke()).json()["job_id"]
        answer = await served.http.get(f"/jobs/{job_id}/visualizations/1")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"].startswith("private")
    policy = answer.headers["content-security-policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


async def test_there_is_a_404_for_what_is_not_there() -> None:
    async with serving(showing(lambda: None)) as served:
        job_id = (await served.invoke()).json()["job_id"]
        http = served.http
        assert (await http.get(f"/jobs/{job_id}/visualizations")).json() == {"visualizations": []}
        assert (await http.get(f"/jobs/{job_id}/visualizations/1")).status_code == 404
        assert (await http.get(f"/jobs/{job_id}/visualizations/0")).status_code == 422
        unknown = "0190c0de-0000-7000-8000-000000000000"
        assert (await http.get(f"/jobs/{unknown}/visualizations")).status_code == 404


async def test_it_is_drawn_as_it_is_now() -> None:
    def show() -> None:
        table = pandas.DataFrame({"x": ["before"]})
        visualize(table)
        table["x"] = "after"

    async with serving(showing(show)) as served:
        job_id = (await served.invoke()).json()["job_id"]
        _, data = await fetched(served, job_id)
    assert b"before" in data
    assert b"after" not in data


async def test_a_long_table_is_cut_and_says_so() -> None:
    def show() -> None:
        visualize(pandas.DataFrame({f"c{number}": range(1000) for number in range(60)}))

    async with serving(showing(show)) as served:
        job_id = (await served.invoke()).json()["job_id"]
        _, data = await fetched(served, job_id)
    assert b"800 more rows and 10 more columns" in data
    assert data.count(b"<tr") == 201


async def test_a_figure_is_left_as_it_was() -> None:
    drawn = figure()
    canvas = drawn.canvas
    await run_pipeline_async(returning(lambda: drawn))
    assert drawn.canvas is canvas


class Broken:
    def _repr_html_(self) -> str:
        raise RuntimeError("no ink")


@pytest.mark.parametrize(("value", "words"), [(Broken(), "RuntimeError: no ink"), (3, "a int can't be shown")])
async def test_what_can_not_be_drawn_is_a_warning_in_the_log(value: Any, words: str) -> None:
    run = await run_pipeline_async(showing(lambda: visualize(value, "mine")))
    assert shown(run) == []
    [line] = [event for event in run.events if event.event_type == "log"]
    assert (line.level, line.step_name) == ("warning", "draw")
    assert line.message is not None
    assert "'mine'" in line.message
    assert words in line.message


async def test_a_run_keeps_so_many_and_says_once_that_there_were_more() -> None:
    def show() -> None:
        for number in range(MOST + 5):
            visualize(HTML(f"<p>{number}"))

    run = await run_pipeline_async(showing(show))
    assert [told["index"] for told in shown(run)] == list(range(1, MOST + 1))
    assert [event.level for event in run.events if event.event_type == "log"] == ["warning"]


async def test_a_run_keeps_so_many_bytes_and_a_smaller_one_still_fits() -> None:
    def show() -> None:
        for size in (MOST_BYTES - 10, 11, 12, 10):
            visualize(HTML("x" * size))

    run = await run_pipeline_async(showing(show))
    assert [told["size"] for told in shown(run)] == [MOST_BYTES - 10, 10]
    assert [event.level for event in run.events if event.event_type == "log"] == ["warning"]


async def test_nothing_is_drawn_where_nothing_is_kept() -> None:
    class Counting:
        drawn = 0

        def _repr_html_(self) -> str:
            self.drawn += 1
            return "<p>"

    for capture in (Capture(visualizations=False), Capture(memory_only=True)):
        value = Counting()
        async with serving(showing(lambda value=value: visualize(value), capture)) as served:
            assert (await served.invoke()).status_code == 200
        assert value.drawn == 0
    value = Counting()
    visualize(value)  # outside a run
    assert value.drawn == 0


async def test_a_long_call_shows_what_it_has_while_it_runs(store_url: str) -> None:
    opened = asyncio.Event()

    @step
    async def draw() -> int:
        get_context().visualize(HTML("<p>early"))
        await opened.wait()
        visualize(HTML("<p>late"))
        return 1

    @pipeline
    def serve() -> Any:
        return draw()

    async with places(serve, store_url) as around:
        served = around.served
        answer = await served.invoke(headers={"Prefer": "wait=0"})
        assert answer.status_code == 202
        job_id = answer.json()["job_id"]

        async def stored() -> list[bytes]:
            return [attachment.data for attachment in await around.backend.attachments.list(job_id)]

        async def has_early() -> bool:
            return await stored() == [b"<p>early"]

        await wait_until(has_early, "the store has the first")
        assert await fetched(served, job_id) == ("text/html", b"<p>early")
        opened.set()
        await around.recorded(job_id)
        assert await stored() == [b"<p>early", b"<p>late"]
        assert await fetched(served, job_id, 2) == ("text/html", b"<p>late")


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_they_are_there_before_the_event_that_tells_of_them(mode: str, store_url: str) -> None:
    async with places(showing(lambda: visualize(HTML("<p>it"))), store_url) as around:
        job_id, _ = await around.call({}, mode=mode)
        events = (await around.served.http.get(f"/jobs/{job_id}/events")).json()["events"]
        [told] = [event["data"] for event in events if event["event_type"] == "visualization"]
        answer = await around.served.http.get(told["href"])
    assert answer.content == b"<p>it"
    assert told["size"] == len(answer.content)
