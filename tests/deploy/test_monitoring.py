"""The Grafana dashboard, the alerts and their page speak of metrics that exist, with labels that these have."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.api.harness import serving, wait_until
from tests.api.pipelines import shout
from tests.programs import needed
from tests.service import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = orjson.loads((ROOT / "deploy" / "grafana" / "dashboards" / "pipeserve.json").read_bytes())
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
ALERT_TESTS = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())["tests"]
PAGE = (ROOT / "docs" / "operations.md").read_text()
OF_PROMETHEUS = {"up": {"job", "instance"}}
TARGET_LABELS = {"job", "instance"}
"""What Prometheus adds to every sample."""


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"].replace("$__rate_interval", "5m")
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]


def used(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Each metric in a parsed expression, with the labels that it is selected by."""
    if isinstance(node, promql_parser.VectorSelector):
        yield str(node.name), {matcher.name for matcher in node.matchers.matchers}
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            yield from used(child)
    for child in getattr(node, "args", ()):
        yield from used(child)


async def samples() -> dict[str, set[str]]:
    """Every sample of a real scrape, with its labels."""
    async with serving(shout) as service:
        await service.invoke({"text": "a"})
        await service.submit({"text": "a"})
        assert (await service.invoke({"text": 1})).status_code == 422

        async def counted() -> bool:
            return (await service.http.get("/metrics")).json()["successful_executions"] == 1

        await wait_until(counted, "the run is counted")
        text = (await service.http.get("/metrics", params={"format": "prometheus"})).text
    found: dict[str, set[str]] = {}
    for family in parse_text(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_metric_and_label_that_is_asked_for_is_there() -> None:
    there = {name: labels | TARGET_LABELS for name, labels in (await samples()).items()} | OF_PROMETHEUS
    seen: set[str] = set()
    for where, expression in expressions():
        metrics = list(used(promql_parser.parse(expression)))
        assert metrics, where
        groups = {
            label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
        }
        for name, labels in metrics:
            assert name in there, f"{where}: there is no {name}"
            assert labels <= there[name], f"{where}: {name} has no {labels - there[name]}"
            seen.add(name)
        known = set().union(*(there[name] for name, _ in metrics))
        assert groups <= known, f"{where}: grouped by {groups - known}"
    legends = {label for p in panels() for t in p["targets"] for label in re.findall(r"{{(\w+)}}", t["legendFormat"])}
    assert legends <= set().union(*there.values())
    assert len(seen) > 20


async def test_the_page_has_every_metric_and_no_other() -> None:
    suffix = re.compile(r"_(bucket|count|sum|created)$")
    there = {suffix.sub("", name) for name in await samples() if name.startswith("pipeserve_")}
    assert set(re.findall(r"^\| `(pipeserve_\w+)` \|", PAGE, re.MULTILINE)) == there


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_its_section_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
    section = PAGE.split(f"\n### {name}\n")[1].split("\n### ")[0]
    assert len(section.split()) >= 20


def test_every_runbook_has_its_alert() -> None:
    assert set(re.findall(r"^### (Pipeserve\w+)$", PAGE, re.MULTILINE)) == {rule["alert"] for rule in RULES}


def test_prometheus_takes_its_files(tmp_path: Path) -> None:
    promtool = needed("promtool", "apt-get install prometheus")
    for name in ("prometheus.yml", "rules.yml"):
        text = (PROMETHEUS / name).read_text().replace("/etc/prometheus/", f"{tmp_path}/")
        (tmp_path / name).write_text(text)
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_alerts_are_raised_once_whatever_the_number_of_processes() -> None:
    promtool = needed("promtool", "apt-get install prometheus")
    command = [promtool, "test", "rules", str(Path(__file__).with_name("alerts.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_been_seen_to_be_raised_and_not_to_be() -> None:
    cases = [case for test in ALERT_TESTS for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_the_dashboard_is_one_that_grafana_can_provision() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert DASHBOARD["uid"] == "pipeserve"
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert "$pipeline" in target["expr"] or 'job="pipeserve"' in target["expr"], panel["title"]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/pipeserve.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounted = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provider["providers"][0]["options"]["path"] in mounted
