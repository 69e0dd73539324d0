"""``make drill``: kills processes under load for minutes, checks every job, and writes a dated report.

Without ``--url`` it starts an installation of its own. With it, it strikes one that runs on this machine, of which it
kills worker processes; API processes and the store only if asked. Somebody must start again what is killed, as
``pipeserve serve`` does. Of the pipeline ``tests/faults/pipelines.py:drill`` everything can be judged. Of any other it
submits ``--params`` and judges states and logs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from tests.faults import report
from tests.faults.figures import Kill
from tests.faults.history import History, Violation, check
from tests.faults.load import Load, RefusedError, Shape
from tests.faults.pipelines import demanded
from tests.faults.sites import FoundSite, Site, found_site, own_site

_TELL_EVERY = 10.0
_TELL_TRIES = 20
"""A second each: the service may still be coming back from the last kill."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to strike, how often and for how long."""

    minutes: float = 10.0
    kills: int | None = None
    """Ends the drill early; None: time alone does."""
    pause: float = 1.5
    """Seconds between two kills at most; each pause is left to chance."""
    clients: int = 12
    targets: tuple[str, ...] = ("worker",)
    parameters: dict[str, Any] | None = None
    """For a pipeline that is not the drill's own."""
    seed: int = 0


@dataclass(slots=True)
class Drill:
    """A drill that is over."""

    history: History
    kills: list[Kill]
    violations: list[Violation]
    found: dict[str, Any]


async def run(site: Site, plan: Plan) -> Drill:
    """Strike, wait for the jobs' ends, and judge."""
    moments = random.Random(plan.seed)
    load = Load(
        site.urls, _shape(site, plan), name=f"drill-{secrets.token_hex(4)}", seed=plan.seed, headers=site.headers
    )
    kills: list[Kill] = []
    started = time.monotonic()
    async with load.running():
        await _strike(site, plan, moments, load.history, kills)
    seconds = time.monotonic() - started
    _say(f"{len(kills)} kills, {len(load.history.accepted)} jobs; looking at each of them")
    history = await load.collect(site.effects)
    violations = check(history)
    return Drill(
        history, kills, violations, report.summary(history, kills, violations, seconds=seconds, seed=plan.seed)
    )


def _shape(site: Site, plan: Plan) -> Shape:
    if site.effects is None:
        parameters = plan.parameters or {}
        return Shape(parameters=lambda _: parameters, clients=plan.clients)
    effects = str(site.effects)
    return Shape(
        parameters=lambda number: {"number": number, "seconds": 0.1 + number * 7 % 10 / 10, "effects": effects},
        outputs=demanded,
        clients=plan.clients,
        most=100_000,
    )


async def _strike(site: Site, plan: Plan, moments: random.Random, history: History, kills: list[Kill]) -> None:
    until, tell_at = time.monotonic() + 60 * plan.minutes, 0.0
    while time.monotonic() < until and (plan.kills is None or len(kills) < plan.kills):
        await asyncio.sleep(moments.uniform(0.1, plan.pause))
        # Most kills are of workers, whatever else is struck: theirs is the recovery that is measured.
        what = moments.choice(plan.targets) if moments.random() < 0.2 else plan.targets[0]
        kill = await site.kill(what, moments)
        if kill is not None:
            kills.append(kill)
        if time.monotonic() > tell_at:
            _say(f"{len(kills)} kills, {len(history.accepted)} jobs")
            tell_at = time.monotonic() + _TELL_EVERY


async def tell(site: Site, found: dict[str, Any]) -> bool:
    """Give the service the figures, which ``/status`` shows then. False: it did not take them."""
    async with httpx.AsyncClient(timeout=10, headers=site.headers) as http:
        for attempt in range(_TELL_TRIES):
            try:
                answer = await http.put(site.urls[attempt % len(site.urls)] + "/status/drill", json=found)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                return answer.is_success
            await asyncio.sleep(1)
    return False


async def main(arguments: Sequence[str] | None = None) -> int:
    """Run a drill; the exit code: 0 all promises were kept, 1 not all, 2 wrongly used."""
    given = _parser().parse_args(arguments)
    plan = Plan(
        minutes=given.minutes,
        kills=given.kills,
        clients=given.clients,
        targets=("worker", *(["api"] if given.api else []), *(["store"] if given.store else [])),
        parameters=given.params,
        seed=secrets.randbelow(1_000_000) if given.seed is None else given.seed,
    )
    try:
        async with found_site(given.url, given.api_key) if given.url else own_site() as site:
            code = await _run_and_report(site, plan, given.reports)
    except* httpx.HTTPError as group:
        _say(f"no usable answer from {' '.join(given.url)}: {group.exceptions[0]}")
    except* RefusedError as group:
        _say(f"the service does not take what is submitted: {group.exceptions[0]}")
    else:
        return code
    return 2


async def _run_and_report(site: Site, plan: Plan, folder: Path) -> int:
    if isinstance(site, FoundSite) and site.effects is None and plan.parameters is None:
        _say("this is not the drill's own pipeline: say with --params '{…}' what to submit")
        return 2
    _say(f"seed {plan.seed}; {plan.minutes:g} minutes" + (f" or {plan.kills} kills" if plan.kills else ""))
    drill = await run(site, plan)
    path = report.write(folder, drill.found, drill.history, drill.kills, drill.violations)
    told = await tell(site, drill.found)
    print(report.page(drill.found, drill.violations))
    _say(f"written to {path}" + ("" if told else "; the service did not take the figures for /status"))
    return 1 if drill.violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make drill ARGS=…", description=__doc__)
    parser.add_argument("--url", action="append", help="an API of an installation on this machine; may be repeated")
    parser.add_argument("--api-key", default=os.environ.get("PIPESERVE_API_KEY"), help="PIPESERVE_API_KEY")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long at most (10)")
    parser.add_argument("--kills", type=int, help="end after so many kills")
    parser.add_argument("--api", action="store_true", help="kill API processes too")
    parser.add_argument("--store", action="store_true", help="kill the store too")
    parser.add_argument("--clients", type=int, default=12, help="jobs under way at once (12)")
    parser.add_argument("--params", type=orjson.loads, help="JSON object to submit, if it is another pipeline")
    parser.add_argument("--seed", type=int, help="makes the same choices again")
    parser.add_argument("--reports", type=Path, default=Path("drills"), help="where the reports go (drills)")
    return parser


def _say(text: str) -> None:
    print(f"drill: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
