"""A pipeline that plants a mark of its own through every way in which a run, or its code, can be seen."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from matplotlib.figure import Figure
from pydantic import BaseModel

from pipeserve import HTML, Capture, Markdown, Pipeline, log_metadata, pipeline, step, visualize

LOGS = {
    "print": "mark-print",
    "no line end": "mark-open-line",
    "bytes": "mark-bytes",
    "stderr": "mark-stderr",
    "logging": "mark-logging",
    "own handler": "mark-own-handler",
    "traceback": "mark-traceback",
    "thread": "mark-thread",
    "thread's logging": "mark-thread-logging",
    "thread's end": "mark-thread-end",
    "executor": "mark-executor",
    "task": "mark-task",
    "to_thread": "mark-to-thread",
    "run_in_executor": "mark-run-in-executor",
    "body": "mark-body",
}
METADATA = {"metadata": "mark-metadata", "parameter": "mark-parameter", "override": "mark-override"}
VISUALIZATIONS = {
    "visualize": "mark-visualize",
    "name": "mark-visual-name",
    "returned": "mark-returned-html",
    "one of several": "mark-returned-markdown",
}
CODE = {
    "pipeline": "mark-pipeline-doc",
    "step": "mark-step-doc",
    "model": "mark-model-doc",
    "source": "mark-source-comment",
}
MARKS = {"logs": LOGS, "metadata": METADATA, "visualizations": VISUALIZATIONS, "code": CODE}

_log = logging.getLogger("tests.capture")
_alone = logging.getLogger("tests.capture.alone")


class Options(BaseModel):
    """mark-model-doc"""

    size: int = 3


def _plant_logs() -> None:
    print(LOGS["print"])
    sys.stdout.buffer.write(LOGS["bytes"].encode() + b"\n")
    print(LOGS["stderr"], file=sys.stderr)
    _log.info("%s", LOGS["logging"])
    _alone.propagate = False
    _alone.handlers[:] = [logging.StreamHandler()]  # made here and now: it writes to stderr as it is in this step
    _alone.warning(LOGS["own handler"])
    try:
        raise ValueError(LOGS["traceback"])
    except ValueError:
        _log.exception("it broke")
    thread = threading.Thread(target=_in_thread)
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(print, LOGS["executor"]).result()
    print(LOGS["no line end"], end="")


def _in_thread() -> None:
    print(LOGS["thread"])
    _log.warning(LOGS["thread's logging"])
    raise RuntimeError(LOGS["thread's end"])


@step
def plant(text: str, options: Options, extra: str = "") -> int:
    """mark-step-doc"""
    assert (text, extra) == (METADATA["parameter"], METADATA["override"])
    _plant_logs()
    log_metadata({"found": METADATA["metadata"]})
    visualize(HTML(f"<p>{VISUALIZATIONS['visualize']}</p>"), VISUALIZATIONS["name"])
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    visualize(figure, "figure")
    return options.size  # mark-source-comment


@step
async def plant_later(size: int) -> int:
    async def child() -> None:
        print(LOGS["task"])

    await asyncio.gather(child(), asyncio.create_task(child()))
    await asyncio.to_thread(print, LOGS["to_thread"])
    await asyncio.get_running_loop().run_in_executor(None, print, LOGS["run_in_executor"])
    return size


@step
def page(size: int) -> HTML:
    return HTML(f"<b>{VISUALIZATIONS['returned']}</b>")


@step
def pages(size: int) -> tuple[int, Markdown]:
    return size, Markdown(f"# {VISUALIZATIONS['one of several']}")


@step
def count(first: str, second: Any) -> int:
    return len(first)


def planted(capture: Capture) -> Pipeline[..., Any]:
    """The pipeline, with ``capture``. Its outputs have no mark in them."""

    @pipeline(capture=capture, dynamic=True)
    async def serve(text: str, options: Options | None = None) -> int:
        """mark-pipeline-doc"""
        print(LOGS["body"])
        size = await asyncio.to_thread(plant, text, options or Options())
        return await plant_later(count(page(size), pages(size)[1]))

    return serve


PARAMETERS = {"text": METADATA["parameter"], "plant.extra": METADATA["override"]}


quiet = planted(Capture(logs=False, metadata=False, visualizations=False, code=False))
"""For a service in processes of its own."""
