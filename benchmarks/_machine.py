"""What every benchmark needs: a store, processes, a free port, waiting, percentiles, a table."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import Store, open_store

ROOT = Path(__file__).parents[1]


@contextlib.asynccontextmanager
async def own_store() -> AsyncIterator[Store]:
    """An embedded Valkey in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="psb-", ignore_cleanup_errors=True) as folder:
        settings = StoreSettings.from_environment(data_dir=Path(folder)).model_copy(update={"redis_url": None})
        async with open_store(settings) as store:
            yield store


async def deployed(store: Store, name: str, module: str = "_pipelines") -> str:
    """The id of a deployment of the benchmarks' pipeline ``name``."""
    loaded = load_target(f"benchmarks.{module}:{name}")
    return (await store.registry.save(snapshot(loaded.pipeline, loaded.target))).id


@contextlib.contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python arguments`` meanwhile; what it prints is shown only if it fails."""
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | {"ZENML_LOG_LEVEL": "warning"} | environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
        try:
            yield running
        except BaseException:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
            raise
        finally:
            running.terminate()
            try:
                running.wait(5)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Return once ``condition()`` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether somebody listens on ``port``."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def percentile(values: Sequence[float], percent: int) -> float:
    """The ``percent``-th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print figures: the first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    print(f"\n{title}")
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells))
