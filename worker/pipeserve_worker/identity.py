"""Who a worker process is: its owner token in the store, and its line in ``/status``.

The token is ``host:pid:random``. The supervisor chooses the random part, so that it can tell the token of a child that
died and can no longer be asked.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass, field

from pipeserve.events import rfc3339
from pipeserve.runtime.ports import WorkerInfo


def new_nonce() -> str:
    """The random part of a token: eight characters."""
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Identity:
    """One worker process."""

    owner: str
    concurrency: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started_at: str = field(default_factory=lambda: rfc3339(time.time()))

    def info(self, busy: int) -> WorkerInfo:
        """This process as ``/status`` shows it, with ``busy`` jobs in hand."""
        return WorkerInfo(
            id=self.owner,
            host=self.host,
            pid=self.pid,
            started_at=self.started_at,
            busy=busy,
            concurrency=self.concurrency,
        )
