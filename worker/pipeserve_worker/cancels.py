"""Passes callers' cancels on to the runs of this process, within milliseconds.

Signals may be lost with a connection. The ledger's ``canceling`` state is the record, and the heartbeat reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pipeserve.errors import StoreUnavailableError
from pipeserve.process_log import Log
from pipeserve.runtime.backoff import Backoff
from pipeserve.runtime.ports import CancelSignals


async def listen_for_cancels(signals: CancelSignals, on_cancel: Callable[[str], None], log: Log) -> None:
    """Call ``on_cancel`` with the id of each job whose cancel is accepted, until cancelled itself."""
    backoff = Backoff(0.05, 1.0)
    while True:
        try:
            async with signals.listen() as canceled:
                async for job_id in canceled:
                    backoff.reset()
                    on_cancel(job_id)
        except StoreUnavailableError as error:
            log.debug("cancels come with the heartbeat while the store is away", error=str(error))
        await asyncio.sleep(backoff.next())
