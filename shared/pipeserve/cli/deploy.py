"""``pipeserve deploy`` and ``pipeserve deployments``: the snapshots that a service can serve."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pipeserve.cli.extras import require_server
from pipeserve.cli.options import AsJson, Target
from pipeserve.cli.output import write_json
from pipeserve.settings import StoreSettings

if TYPE_CHECKING:
    from pipeserve.runtime.ports import DeploymentRegistry
    from pipeserve.sdk.deployment import Deployment

T = TypeVar("T")


def deploy(
    target: Target,
    name: Annotated[str | None, typer.Option(help="What to call it; by default as the pipeline is called.")] = None,
) -> None:
    """Make a deployment of TARGET as its code is now, and print its UUID alone.

    Code that hasn't changed since gives the same deployment again.
    """
    require_server()
    from pipeserve.sdk.snapshot import snapshot
    from pipeserve.sdk.target import load_target

    loaded = load_target(target)
    taken = snapshot(loaded.pipeline, loaded.target, name)
    sys.stdout.write(_with_registry(lambda registry: registry.save(taken)).id + "\n")


def deployments(as_json: AsJson = False) -> None:
    """List the deployments in the store, newest first."""
    require_server()
    found = _with_registry(lambda registry: registry.list())
    if as_json:
        write_json([deployment.model_dump(mode="json") for deployment in found])
    elif sys.stdout.isatty():
        _draw(found)
    else:
        for deployment in found:
            sys.stdout.write("\t".join(_row(deployment)) + "\n")


def _with_registry(use: Callable[[DeploymentRegistry], Awaitable[T]]) -> T:
    from pipeserve.store import open_store

    async def main() -> T:
        async with open_store(StoreSettings.from_environment()) as store:
            return await use(store.registry)

    return asyncio.run(main())


def _row(deployment: Deployment) -> tuple[str, str, str, str]:
    created = deployment.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return deployment.id, deployment.name, created, deployment.target


def _draw(found: list[Deployment]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "created", "target", box=None, pad_edge=False)
    for deployment in found:
        table.add_row(*_row(deployment))
    Console().print(table if found else "No deployments yet: pipeserve deploy package.module:pipeline makes one.")
