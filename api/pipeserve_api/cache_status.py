"""What an answer says of the step cache: ``Cache-Status`` (RFC 9211), and the counts in its metadata.

One member for each step call that can be cached, in the order of the calls. Names of steps and arguments only: a value
never stands in a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from pipeserve.jobs import Job
from pipeserve.runtime.run import StepRecord

HEADER = "cache-status"
LONGEST = 4096
"""Bytes of the header: proxies and clients refuse headers of more than 8 KiB or so in all."""
HITS = ("hit", "shared_hit", "joined")
_TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*")
_NOT_IN_STRINGS = re.compile(r'(["\\])')
_LARGEST_INTEGER = 999_999_999_999_999  # of a structured field (RFC 9651)

CachedCall = tuple[str, dict[str, Any]]
"""A step call's name and its receipt: the members of a :class:`~pipeserve.jobs.CacheReceipt`."""


def calls_of_run(steps: Iterable[StepRecord]) -> list[CachedCall]:
    """The calls of a run of this process that can be cached."""
    return [(step.name, step.cache) for step in steps if step.cache is not None]


def calls_of_job(job: Job) -> list[CachedCall]:
    """The same of a job's record; none where its steps were not kept."""
    return [(step.name, step.cache.model_dump()) for step in job.steps if step.cache is not None]


def cache_figures(calls: Sequence[CachedCall]) -> dict[str, int]:
    """How many of the calls were spared, and how many not: ``metadata.cache`` of an answer."""
    hits = sum(receipt["status"] in HITS for _, receipt in calls)
    return {"hits": hits, "misses": len(calls) - hits}


def cache_headers(calls: Sequence[CachedCall]) -> dict[str, str]:
    """The answer's header; none where no step can be cached. A longer one ends after the last member that fits."""
    members: list[str] = []
    size = 0
    for name, receipt in calls:
        member = _identifier(name) + _parameters(receipt)
        size += len(member) + 2
        if size > LONGEST:
            break
        members.append(member)
    return {HEADER: ", ".join(members)} if members else {}


def _identifier(name: str) -> str:
    """A token, or a string where the name is none. Characters beyond ASCII, which neither can hold, as in a URL."""
    plain = name if name.isascii() and name.isprintable() else quote(name, safe=" ")
    return plain if _TOKEN.fullmatch(plain) else _string(plain)


def _parameters(receipt: dict[str, Any]) -> str:
    match receipt["status"]:
        case "hit":
            return ";hit" + _ttl(receipt)
        case "shared_hit":
            return ";hit" + _ttl(receipt) + ";detail=shared"
        case "joined":  # it went forward, together with an equal call: "collapsed" says so, and is never with "hit"
            return ";fwd=uri-miss;collapsed"
        case "bypass":
            forward = "request"
        case _ if receipt.get("reason") == "unhashable":
            names = " ".join(receipt.get("changed") or ())
            return ";fwd=bypass;detail=" + _string(f"argument can't be compared: {quote(names, safe=' ')}")
        case _:
            forward = "stale" if receipt.get("reason") == "expired" else "uri-miss"
    return f";fwd={forward}" + (";stored" if receipt.get("stored") else "")


def _ttl(receipt: dict[str, Any]) -> str:
    ttl = receipt.get("ttl")
    return "" if ttl is None else f";ttl={int(min(ttl, _LARGEST_INTEGER))}"


def _string(text: str) -> str:
    return '"' + _NOT_IN_STRINGS.sub(r"\\\1", text) + '"'
