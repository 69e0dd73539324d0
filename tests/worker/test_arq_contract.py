"""What the worker relies on in arq, so that an upgrade which changes it fails here and not in production.

A failure means: read arq's diff, adapt ``pipeserve_worker/worker.py`` if need be, then write the new digest here.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import deserialize_job_raw, serialize_result
from arq.worker import Function, Worker, func

from pipeserve_worker.worker import JobWorker


def digest(function: Callable[..., Any]) -> str:
    """Of its source text: the same on every version of Python."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


# Overridden: the worker replaces these, so it must know what they did.
OVERRIDDEN = {
    "main": "45ca1591c9717466",
    "_poll_iteration": "f8d39d823a0a59f2",
    "finish_job": "903f09c92830d3fd",
    "finish_failed_job": "3e16087f318a7acf",
}
# Used as they are: the worker relies on what they do and on the attributes that they touch.
RELIED_UPON = {
    "__init__": "edfb0cd7e05e77cf",
    "run_job": "589a19059ff84ee7",
    "async_run": "f3434c3dd359b31b",
    "heart_beat": "2e9959bea66dc551",
    "run_cron": "7d2d3784e6567fb2",
    "record_health": "108f4b8686c9402d",
}
FUNCTIONS = {
    func: "f44ddaf9b8a2bdbb",
    serialize_result: "709b9d4709d5aa08",
    deserialize_job_raw: "f330dfaff8e2160f",
}


def test_the_installed_arq_is_the_series_that_the_worker_was_written_for():
    assert version("arq").startswith("0.28."), "read arq's changes to arq/worker.py, then move this pin"


@pytest.mark.parametrize(("name", "expected"), [*OVERRIDDEN.items(), *RELIED_UPON.items()])
def test_a_method_of_arqs_worker_is_what_it_was(name: str, expected: str):
    found = digest(getattr(Worker, name))
    assert found == expected, f"arq.worker.Worker.{name} has changed: read its diff, then put {found!r} here"


@pytest.mark.parametrize(("function", "expected"), FUNCTIONS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_function_that_arqs_worker_calls_is_what_it_was(function: Callable[..., Any], expected: str):
    found = digest(function)
    assert found == expected, f"{function.__module__}.{function.__name__} has changed: put {found!r} here"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_takes_the_same_arguments(name: str):
    theirs, ours = (inspect.signature(getattr(kind, name)) for kind in (Worker, JobWorker))
    assert list(ours.parameters) == list(theirs.parameters)


def test_run_job_is_arqs_own():
    assert JobWorker.run_job is Worker.run_job


def test_no_other_method_of_arqs_is_overridden():
    shared = {name for name in vars(JobWorker) if name in vars(Worker) and not name.startswith("__")}
    assert shared == set(OVERRIDDEN)


def test_a_function_carries_what_the_worker_sets():
    assert list(inspect.signature(Function).parameters) == [
        *("name", "coroutine", "timeout_s", "keep_result_s", "keep_result_forever", "max_tries")
    ]


def test_the_pool_has_the_serializers_that_the_worker_shares():
    assert {"job_serializer", "job_deserializer"} <= set(inspect.signature(ArqRedis).parameters)
