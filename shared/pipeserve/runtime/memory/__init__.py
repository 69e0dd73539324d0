"""The store's twin in this process: the same ports and behaviour, nothing outside, gone with the process.

For tests, and for pipelines that run without a store. Use it from one event loop.
"""

from pipeserve.runtime.memory.attachments import MemoryAttachments
from pipeserve.runtime.memory.checkpoints import MemoryCheckpoints
from pipeserve.runtime.memory.event_log import MemoryCancelSignals, MemoryEventLog
from pipeserve.runtime.memory.ledger import MemoryLedger
from pipeserve.runtime.memory.limits import MemoryLimits
from pipeserve.runtime.memory.operations import MemoryOperations
from pipeserve.runtime.memory.registry import MemoryDeployments
from pipeserve.runtime.memory.shared_cache import MemorySharedCache
from pipeserve.runtime.memory.state import Clock, MemoryState
from pipeserve.runtime.memory.webhook_outbox import MemoryWebhookOutbox

__all__ = [
    "MemoryAttachments",
    "MemoryCancelSignals",
    "MemoryCheckpoints",
    "MemoryDeployments",
    "MemoryEventLog",
    "MemoryLedger",
    "MemoryOperations",
    "MemorySharedCache",
    "MemoryStore",
    "MemoryWebhookOutbox",
]


class MemoryStore:
    """One deployment's ``ledger``, ``log``, ``signals``, ``operations``, ``attachments``, ``checkpoints``, ``webhooks``
    and shared ``cache``, and a ``registry``.

    ``clock`` gives Unix time in seconds: leases, ages and lifetimes follow it, so a test can move it.
    ``lease_seconds``, ``max_queue_size``, ``result_ttl`` and ``event_log_max`` mean what the settings so named mean.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        lease_seconds: float = 10.0,
        max_queue_size: int = 10_000,
        result_ttl: float = 86_400,
        event_log_max: int = 10_000,
    ) -> None:
        state = MemoryState(
            clock=clock,
            lease_seconds=lease_seconds,
            max_queue_size=max_queue_size,
            result_ttl=result_ttl,
            event_log_max=event_log_max,
        )
        self.ledger = MemoryLedger(state)
        self.log = MemoryEventLog(state)
        self.signals = MemoryCancelSignals(state)
        self.operations = MemoryOperations(state)
        self.attachments = MemoryAttachments(state)
        self.checkpoints = MemoryCheckpoints(state)
        self.webhooks = MemoryWebhookOutbox(state)
        self.cache = MemorySharedCache(state.clock)
        self.limits = MemoryLimits(state.clock)
        self.registry = MemoryDeployments()
