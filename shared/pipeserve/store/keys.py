"""Every key name, channel name and time to live in one place, so that nothing in the store outlives its use unnoticed.

All keys of a deployment carry its id as a hash tag, ``pipeserve:{<deployment id>}:…``: they share a slot, and two
deployments never share one. A key has a time to live unless :data:`IMMORTAL` says why not; a test fixture holds the
store to that after every test.

======================  ========  ==============================================================================
key                     type      content
======================  ========  ==============================================================================
``job:<id>``            hash      the job's record
``events:<id>``         stream    its log, entry ids ``<seq>-0``, one field ``d``: the event's body
``attachments:<id>``    hash      its visualizations: index → a line of JSON, then the data; lives as long as the record
``checkpoints:<id>``    hash      results of its durable steps: step call → record; gone when the job has ended
``deliveries:<id>``     list      the newest tries to deliver its webhook, as JSON; lives as long as the record
``queue``               zset      ids that wait; score: when due, in ms with a fraction, so that order is strict
``lane:<lane>``         zset      those of them that are due, of one lane; score: the same less what priority is worth
``lanes``               zset      lanes that have jobs; score: whose turn it is, the lowest first
``scheduled``           zset      those that are not due yet; score: when due, in ms
``expiry``              zset      ids that must have been started by a time, in ms
``idempotency:<key>``   string    ``<id>:<fingerprint>`` of the job that was submitted under this key
``limit:<caller>:<name>``  string  the µs at which a caller's budget is whole again
``webhooks``            zset      ids that have something to send; score: when, in ms
``codes``               hash      id → code of the error it ended with
``pace:<n>``            hash      how many jobs were claimed and refused in ten seconds
``reconciler``          string    who looks at all live jobs, for as long as nobody else should
``drill``               string    the report of the last drill, as JSON
``running``             zset      ids that an owner holds; score: end of the lease, in ms
``wake``                list      tokens that idle workers block on; a hint, never the record
``jobs``                zset      all ids by creation, in ms
``status:<status>``     zset      the same, by status
``labels``              hash      id → labels as JSON, for jobs that have some
``owned``               zset      ``<caller>:<created, in µs>:<id>``, in that order, for jobs that have an owner
``owners``              hash      id → its member there
``expiring``            zset      ``<status>:<id>`` of finished jobs by the ms at which their record expires
``totals``              hash      ends and seconds over the deployment's life
``counters``            hash      what its runs counted, over the deployment's life
``latency``             hash      ``<kind>:<bucket>`` → observations
``workers``             zset      ids of worker processes by the ms at which their record expires
``worker:<id>``         string    one worker process, as JSON
``heard``               string    ``<last>:<until>`` in ms: when an owner last spoke, and since when reaping rests
``epoch``               string    ``<marker>:<ms>``: tells it from a store that was emptied, and when that was noticed
``cache:<key>``         string    a step result that all processes share
``caches``              hash      process → ``<when told, in ms>:<entries>:<bytes>`` of its step cache
======================  ========  ==============================================================================

arq names its keys itself, without a tag: ``arq:job:<id>``, ``arq:retry:<id>``, ``arq:in-progress:<id>``,
``arq:result:<id>`` (all with a time to live) and ``arq:abort`` (never written here).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ARQ_JOB_TTL = 30 * 86_400
"""Seconds. arq calls a job without ``arq:job`` key "expired"; a claim renews it, so no accepted job dies of it."""
WAKE_TTL = 3_600
WAKE_TOKENS = 64
"""More workers than this are never idle and worth waking by one burst; a periodic look is the backstop."""
FIGURES_TTL = 400 * 86_400
"""Seconds for which a deployment's totals outlive its last finished job."""
INDEX_GRACE = 3_600
"""Seconds by which the indexes outlive the last record, once a deployment has no live job."""
HEARD_TTL = 30 * 86_400
"""Seconds: a jump of the clock, or an outage, up to which owners get time to renew their leases."""
EPOCH_TTL = 30 * 86_400
"""Seconds by which it outlives the last beat of any process."""
PACE_TTL = 120
"""Seconds; the pace of the last minute is asked for."""
CACHES_TTL = 30
"""Seconds for which it counts what a process told of its step cache."""


@dataclass(frozen=True, slots=True)
class Immortal:
    """Keys that may lack a time to live: which, when, and why."""

    pattern: re.Pattern[str]
    condition: Literal["job is live", "deployment has live jobs", "always"]
    reason: str


_OURS = r"^pipeserve:\{[^}]+\}:"

IMMORTAL: tuple[Immortal, ...] = (
    Immortal(
        re.compile(_OURS + r"(job|events|attachments|checkpoints|deliveries):(?P<job_id>.+)$"),
        "job is live",
        "An accepted job is kept until it has finished, however long it waits. Finishing sets a time to live, and "
        "deletes the checkpoints.",
    ),
    Immortal(
        re.compile(_OURS + r"(queue|running|lanes|lane:.*|scheduled|expiry|status:(pending|running|canceling))$"),
        "deployment has live jobs",
        "Lists live jobs only; Redis deletes it with its last member.",
    ),
    Immortal(
        re.compile(
            _OURS + r"(jobs|labels|owned|owners|codes|expiring|status:(completed|failed|canceled|timed_out|expired))$"
        ),
        "deployment has live jobs",
        "Lists live jobs or is written next to them. The script that ends the last live job sets a time to live.",
    ),
    Immortal(
        re.compile(_OURS + r"idempotency:.+$"),
        "deployment has live jobs",
        "Holds for as long as its job lives. The job's end sets a time to live.",
    ),
    Immortal(
        re.compile(r"^pipeserve:\{deployments\}:(records|identities|names)$"),
        "always",
        "Deployments are few, and stay until an operator removes them.",
    ),
)


def immortal(key: str) -> Immortal | None:
    """Why ``key`` may lack a time to live; None: it may not."""
    return next((entry for entry in IMMORTAL if entry.pattern.match(key)), None)


@dataclass(frozen=True, slots=True)
class Keys:
    """The names that belong to one deployment. Lua builds the same names from :attr:`prefix`."""

    deployment_id: str

    @property
    def prefix(self) -> str:
        """What every key of the deployment begins with."""
        return f"pipeserve:{{{self.deployment_id}}}:"

    @property
    def queue(self) -> str:
        """The zset of waiting jobs: arq's queue name."""
        return self.prefix + "queue"

    @property
    def running(self) -> str:
        """The zset of held jobs."""
        return self.prefix + "running"

    @property
    def wake(self) -> str:
        """The list that idle workers block on."""
        return self.prefix + "wake"

    @property
    def jobs(self) -> str:
        """The zset of all jobs."""
        return self.prefix + "jobs"

    @property
    def owned(self) -> str:
        """The index of jobs by caller."""
        return self.prefix + "owned"

    @property
    def labels(self) -> str:
        """The hash of labels."""
        return self.prefix + "labels"

    @property
    def codes(self) -> str:
        """The hash of the codes of errors."""
        return self.prefix + "codes"

    def status(self, status: str) -> str:
        """The zset of jobs in one state."""
        return f"{self.prefix}status:{status}"

    def job(self, job_id: str) -> str:
        """A job's record."""
        return f"{self.prefix}job:{job_id}"

    def events(self, job_id: str) -> str:
        """A job's log. The channel that announces its entries has the same name (channels are no keys)."""
        return f"{self.prefix}events:{job_id}"

    def attachments(self, job_id: str) -> str:
        """A job's visualizations."""
        return f"{self.prefix}attachments:{job_id}"

    def checkpoints(self, job_id: str) -> str:
        """The results of a live job's durable steps."""
        return f"{self.prefix}checkpoints:{job_id}"

    def deliveries(self, job_id: str) -> str:
        """The newest tries to deliver a job's webhook."""
        return f"{self.prefix}deliveries:{job_id}"

    def cache(self, key: str) -> str:
        """A shared step result."""
        return f"{self.prefix}cache:{key}"

    @property
    def caches(self) -> str:
        """The hash of what processes told of their step caches."""
        return self.prefix + "caches"

    @property
    def reconciler(self) -> str:
        """Who looks at all live jobs."""
        return self.prefix + "reconciler"

    @property
    def epoch(self) -> str:
        """The marker that tells this store from one that was emptied."""
        return self.prefix + "epoch"

    @property
    def drill(self) -> str:
        """The report of the last drill."""
        return self.prefix + "drill"

    @property
    def webhook_channel(self) -> str:
        """The channel on which it is announced that a webhook has something to send."""
        return self.prefix + "webhooks"

    @property
    def cancel_channel(self) -> str:
        """The channel on which cancels are announced to owners."""
        return self.prefix + "cancel"

    def heartbeat_channel(self, token: str) -> str:
        """The channel on which one hub hears itself."""
        return f"{self.prefix}heartbeat:{token}"


DEPLOYMENT_RECORDS = "pipeserve:{deployments}:records"
"""Hash: id → deployment as JSON."""
DEPLOYMENT_IDENTITIES = "pipeserve:{deployments}:identities"
"""Hash: digest of name, target and fingerprint → id."""
DEPLOYMENT_NAMES = "pipeserve:{deployments}:names"
"""Hash: name → id of its newest deployment."""
