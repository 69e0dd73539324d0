"""What a drill found: as JSON for programs, and as a page for people."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psutil
from tests.faults.figures import Kill, Spread, cancels, recoveries
from tests.faults.history import History, Violation, by_rule

_DOUBLED = ("doubled", "one end", "after the end", "work", "foreign")
"""Rules of which a break means that something was done, or ended, more than once."""
_TOLD = 20


def summary(
    history: History, kills: Sequence[Kill], violations: Sequence[Violation], *, seconds: float, seed: int
) -> dict[str, Any]:
    """The figures, as ``PUT /status/drill`` takes them. Times are in seconds."""
    counts = by_rule(violations)
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "jobs": len({accepted.job_id for accepted in history.accepted}),
        "kills": dict(Counter(kill.what for kill in kills)),
        "lost": counts.get("lost", 0),
        "doubled": sum(counts.get(rule, 0) for rule in _DOUBLED),
        "violations": len(violations),
        "statuses": dict(Counter(job["status"] for job in history.jobs.values())),
        "worker_lost": sum((job["error"] or {}).get("code") == "worker_lost" for job in history.jobs.values()),
        "recovery": Spread.of(recoveries(history, kills)).as_dict(),
        "cancel": Spread.of(cancels(history)).as_dict(),
        "versions": {"pipeserve": version("pipeserve"), "python": platform.python_version()},
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processors": str(psutil.cpu_count()),
            "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        },
        "seed": seed,
    }


def page(found: Mapping[str, Any], violations: Sequence[Violation]) -> str:
    """The report for people, as Markdown."""
    struck = ", ".join(f"{count} {what}" for what, count in found["kills"].items()) or "none"
    lines = [
        f"# Drill of {found['finished_at']}",
        "",
        f"{found['jobs']:,} jobs in {found['seconds']:,.0f} s; killed: {struck}.",
        "",
        "| | |",
        "|---|---|",
        f"| lost | {found['lost']} |",
        f"| doubled | {found['doubled']} |",
        f"| violations in all | {found['violations']} |",
        f"| jobs by their end | {', '.join(f'{count} {status}' for status, count in found['statuses'].items())} |",
        f"| failed because all their attempts were killed | {found['worker_lost']} |",
        f"| from a kill to the job's next start | {_spread(found['recovery'])} |",
        f"| from a cancel to the end of a running job | {_spread(found['cancel'])} |",
        f"| versions | {', '.join(f'{name} {text}' for name, text in found['versions'].items())} |",
        f"| machine | {', '.join(f'{name}: {text}' for name, text in found['machine'].items())} |",
        f"| seed | {found['seed']} |",
    ]
    if violations:
        lines += ["", "## Violations", "", *(f"- {violation}" for violation in violations[:_TOLD])]
        if len(violations) > _TOLD:
            lines.append(f"- and {len(violations) - _TOLD} more")
    return "\n".join(lines) + "\n"


def write(
    folder: Path, found: Mapping[str, Any], history: History, kills: Sequence[Kill], violations: Sequence[Violation]
) -> Path:
    """Write both files, named by the date in UTC; the JSON has the whole story of the jobs that broke a rule."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ") + ".md")
    path.write_text(page(found, violations))
    broken = {violation.job_id for violation in violations[:_TOLD]}
    whole = {
        **found,
        "kills_in_order": [asdict(kill) for kill in kills],
        "found": [str(violation) for violation in violations],
        "broken": [_story(history, job_id) for job_id in sorted(broken)],
    }
    path.with_suffix(".json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
    return path


def _story(history: History, job_id: str) -> dict[str, Any]:
    def of_job(found: Sequence[Any]) -> list[dict[str, Any]]:
        return [asdict(item) for item in found if item.job_id == job_id]

    return {
        "job": history.jobs.get(job_id),
        "events": history.events.get(job_id),
        "accepted": of_job(history.accepted),
        "cancels": of_job(history.cancels),
        "sightings": of_job(history.sightings),
        "effects": of_job(history.effects),
    }


def _spread(spread: Mapping[str, Any]) -> str:
    if not spread["count"]:
        return "none"
    return f"p50 {spread['p50']:.3f} s, p95 {spread['p95']:.3f} s, max {spread['max']:.3f} s (of {spread['count']:,})"
