"""``python -m pipeserve_api``: one deployment over HTTP, configured by the environment alone."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import nullcontext

import uvloop

from pipeserve.errors import PipeserveError
from pipeserve.process_log import configure_logging
from pipeserve.runtime.garbage import settle_memory
from pipeserve.runtime.line_fields import ContextFields
from pipeserve.telemetry import open_tracing
from pipeserve_api import parent
from pipeserve_api.app import create_app
from pipeserve_api.drain import Drain
from pipeserve_api.exposure import check_exposure
from pipeserve_api.key_ring import KeyRing
from pipeserve_api.processes import bound_socket, inherited_socket, listen, serve_in_processes
from pipeserve_api.server import Server, allow_many_connections, server_config
from pipeserve_api.services import open_services
from pipeserve_api.settings import ApiSettings

_log = logging.getLogger("pipeserve_api")


def main() -> int:
    """Serve until told to stop. Returns the exit code: 0 after SIGTERM or Ctrl-C, 2 when it can't start."""
    parent.follow_parent()
    try:
        settings = ApiSettings.from_environment()
        settings.deployment.required()
        fields = ContextFields()
        configure_logging(settings.log.level, form=settings.log.format, fields=fields)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, fields))
    except PipeserveError as error:
        sys.stderr.write(f"pipeserve_api: {error}\n")
        return 2
    except KeyboardInterrupt:  # before the server took the signal over
        return 0


async def _serve(settings: ApiSettings, fields: ContextFields) -> int:
    shared = inherited_socket()
    if shared is None:  # said once, not by each of several processes
        check_exposure(settings.service)
        KeyRing.of(settings.service)  # keys that can't be used are told before anything is opened
    if shared is None and settings.service.workers > 1:
        return await serve_in_processes(settings)
    allow_many_connections()
    fields.tracing = open_tracing(settings.tracing, "pipeserve-api")
    try:
        await _serve_here(settings, fields, shared)
    finally:
        if fields.tracing is not None:
            fields.tracing.close()
    _log.info("stopped")
    return 0


async def _serve_here(settings: ApiSettings, fields: ContextFields, shared: socket.socket | None) -> None:
    drain = Drain()
    # The parent of several has seen the deployment: if it is gone, the store was emptied, and gets it back soon.
    patience = 0.0 if shared is None else settings.store.lease_seconds
    with shared or bound_socket(settings.service) as listener:
        async with open_services(settings, drain, patience=patience, tracing=fields.tracing) as services:
            fields.tracing, fields.deployment_id = services.tracing, services.deployment.id
            # Opened before the server, so that what can't start says so in one line, not in a lifespan's traceback.
            app = create_app(lambda _drain: nullcontext(services), settings.service, drain, tracing=services.tracing)
            server = Server(
                server_config(app, settings.service),
                drain,
                busy=lambda: services.runtime.active,
                grace=settings.drain_seconds,
                interrupt=services.inline.interrupt,
            )
            url = listen(listener)
            settle_memory()
            _log.info("serving", extra={"url": url, "deployment_id": services.deployment.id})
            await server.serve([listener])


if __name__ == "__main__":
    sys.exit(main())
