"""What the environment makes of a process: traces or none, and what its log says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tracing.collector import collecting

from pipeserve.settings import TracingSettings
from pipeserve.telemetry import open_tracing

ROOT = Path(__file__).parents[2]

PROGRAM = """
import logging, sys
from pipeserve.process_log import configure_logging
from pipeserve.settings import TracingSettings
from pipeserve.telemetry import existing_tracing, open_tracing
{before}
configure_logging("info")
tracing = open_tracing(TracingSettings.from_environment(), "pipeserve-test")
print("tracing" if tracing else "none")
if tracing:
    tracing.start("one").end()
    tracing.close()
{after}
"""


def run(environment: dict[str, str], *, before: str = "", after: str = "") -> tuple[str, str]:
    """What a process of its own prints, and its log."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, after=after)],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**inherited, **environment},
    )
    return done.stdout, done.stderr


def settings(**given: object) -> TracingSettings:
    return TracingSettings.from_environment(**given)


def test_nothing_asked_for_is_nothing():
    assert run({}) == ("none\n", "")


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, ()),
        ({"endpoint": "http://c:4318"}, ("otlp",)),
        ({"traces_endpoint": "http://c:4318/v1/traces"}, ("otlp",)),
        ({"exporter": "otlp"}, ("otlp",)),
        ({"exporter": "none", "endpoint": "http://c:4318"}, ()),
        ({"exporter": "console, otlp,console"}, ("console", "otlp")),
        ({"exporter": "otlp", "disabled": True}, ()),
    ],
)
def test_the_standards_variables_decide(environment: dict[str, object], exporters: tuple[str, ...]):
    assert settings(**environment).exporters == exporters


def test_one_line_says_where_traces_go_and_no_secret_of_it():
    with collecting() as collector:
        address = collector.url.removeprefix("http://")
        printed, log = run({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://me:hunter2@{address}"})
        assert printed == "tracing\n"
        assert [span.name for span in collector.spans] == ["one"]
        assert [span.service for span in collector.spans] == ["pipeserve-test"]
    assert len(log.splitlines()) == 1
    assert "exporter=otlp" in log
    assert address in log
    assert "hunter2" not in log


def test_the_services_name_may_be_given():
    with collecting() as collector:
        run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"})
        run({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"})
        assert [span.service for span in collector.spans] == ["mine", "ours"]


def test_an_exporter_that_is_not_there_is_said_and_stops_nothing():
    printed, log = run({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert printed == "none\n"
    assert "no exporter 'zipkin' is installed" in log


def test_an_extra_that_is_not_installed_is_said_with_its_name():
    hidden = "sys.modules['opentelemetry.sdk'] = None"
    printed, log = run({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, before=hidden)
    assert printed == "none\n"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in log
    assert "pip install 'pipeserve[otel]'" in log


def test_a_provider_that_the_program_has_set_is_used_and_stays():
    before = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
own = TracerProvider()
own.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(own)
"""
    after = """
assert trace.get_tracer_provider() is own
assert existing_tracing() is not None
print([span.name for span in exporter.get_finished_spans()])
own.get_tracer("mine").start_span("still open").end()
print(len(exporter.get_finished_spans()))
"""
    printed, _ = run({"OTEL_TRACES_EXPORTER": "otlp"}, before=before, after=after)
    assert printed.splitlines() == ["tracing", "['one']", "2"]
    printed, _ = run({}, before=before, after="print(type(existing_tracing()).__name__)")
    assert printed.splitlines() == ["none", "OpenTelemetry"]


def test_nobodys_provider_is_none():
    assert open_tracing(settings(), "pipeserve-test") is None
