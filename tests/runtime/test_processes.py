"""Steps in processes of their own: what they see and say, how they fail, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.runtime import process_steps as steps

from pipeserve import Capture, InvocationError, Pipeline, Step, Stream, pipeline, step
from pipeserve.errors import DefinitionError, DrainingError, StepFailedError
from pipeserve.events import EventType
from pipeserve.runtime.capture.isolation import LogRouting
from pipeserve.runtime.capture.veil import Veil
from pipeserve.runtime.capture.visuals import Rendered
from pipeserve.runtime.processes import ProcessDiedError, ProcessPool, StepPlace
from pipeserve.sdk.context import LocalRun
from pipeserve.sdk.target import load_target

pytestmark = pytest.mark.e2e  # each test starts processes


class Listener(LocalRun):
    """A run that notes what is reported to it."""

    job_id = "job-7"
    attempt = 2
    run_name = "a-run"

    def __init__(self, remaining: float = math.inf) -> None:
        super().__init__()
        self.heard: list[tuple[EventType, str | None, Any, str | None, str | None]] = []
        self._remaining = remaining
        self._changed = asyncio.Event()

    def remaining(self) -> float:
        return self._remaining

    def report(
        self,
        event_type: EventType,
        step_name: str | None,
        data: Any,
        *,
        level: str | None = None,
        message: str | None = None,
    ) -> None:
        self.heard.append((event_type, step_name, data, level, message))
        self._changed.set()

    @property
    def lines(self) -> list[str]:
        """Messages of ``log`` events."""
        return [str(message) for event_type, *_, message in self.heard if event_type is EventType.LOG]

    @property
    def outputs(self) -> list[tuple[int, Any]]:
        """Index and value of ``output`` events."""
        return [(data["index"], data["value"]) for event_type, _, data, *_ in self.heard if event_type == "output"]

    async def lines_when(self, count: int) -> list[str]:
        """The lines, as soon as there are so many."""
        while len(self.lines) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.lines


class Pool(ProcessPool):
    """A pool that takes steps as authors have them."""

    async def run(self, called: Step[..., Any], *args: Any, control: LocalRun | None = None, **kwargs: Any) -> Any:
        return await self.call(called.definition, called.definition.name, args, kwargs, control or LocalRun())


def pool_of(served: Pipeline[..., Any] = steps.without_hooks, max_processes: int = 2) -> Pool:
    return Pool(served.definition, max_processes=max_processes)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with pool_of() as pool:
        yield pool
        pids = pool.processes
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what other processes do."""
    while not condition():  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# ---- what a step sees and says


async def test_a_step_runs_in_another_process_which_is_kept_for_the_next_call(pool: Pool) -> None:
    label, pid = await pool.run(steps.whoami, label="first")
    assert label == "first"
    assert pid in pool.processes
    assert pid != os.getpid()
    assert await pool.run(steps.whoami, "second") == ("second", pid)


async def test_a_step_sees_its_run_its_deadline_and_the_state_that_on_init_made_once_in_its_process() -> None:
    async with pool_of(steps.with_hooks, max_processes=1) as pool:
        seen = await pool.run(steps.where, control=Listener(remaining=50.0))
        assert (seen["job_id"], seen["attempt"], seen["run_name"], seen["step_name"], seen["cancelled"]) == (
            "job-7",
            2,
            "a-run",
            "where",
            False,
        )
        assert 0 < seen["remaining"] < 50
        assert (seen["state"].pid, seen["state"].calls) == (seen["pid"], 1)
        assert seen["pid"] != os.getpid()

        listener = Listener()
        seen = await pool.run(steps.where, control=listener)
        assert (seen["remaining"], seen["state"].calls) == (math.inf, 2)
        assert listener.heard == []
        assert await pool.run(steps.on_one_loop)  # an async on_init and async steps share a loop


async def test_on_init_that_fails_fails_the_call_and_is_tried_again() -> None:
    async with pool_of(steps.with_broken_init) as pool:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="no database"):
                await pool.run(steps.whoami)


async def test_what_a_step_says_arrives_while_it_runs(pool: Pool, tmp_path: Path) -> None:
    listener = Listener()
    call = asyncio.create_task(pool.run(steps.speak, str(tmp_path / "go"), control=listener))
    await listener.lines_when(2)
    await until(lambda: len(listener.heard) >= 5)
    assert not call.done()
    (tmp_path / "go").touch()
    await call

    assert {name for _, name, *_ in listener.heard} == {"speak"}
    kinds = [(event_type.value, data, message) for event_type, _, data, _, message in listener.heard]
    assert kinds[:3] == [
        ("progress_update", {"fraction": 0.5}, "half"),
        ("log", {"logger": "print"}, "one"),
        ("log", {"logger": "print"}, "two"),
    ]
    event_type, data, _ = kinds[3]
    assert (event_type, data["rows"], type(data["lock"]).__name__) == ("metadata", 3, "lock")  # it can't be pickled
    assert kinds[4] == ("output", {"value": {"partial": 1}, "index": 0}, None)
    assert listener.lines[2:] == ["no line end"]


async def test_logging_follows_the_level_of_this_process(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "go").touch()
    listener = Listener()
    await pool.run(steps.speak, str(tmp_path / "go"), control=listener)
    assert [(level, message) for *_, level, message in listener.heard if message == "logged 1"] == [
        ("info", "logged 1")
    ]


async def test_with_logs_off_nothing_printed_is_reported(tmp_path: Path) -> None:
    @pipeline(capture=Capture(logs=False))
    def quiet() -> None:
        steps.whoami()

    (tmp_path / "go").touch()
    listener = Listener()
    async with pool_of(quiet) as pool:
        await pool.run(steps.speak, str(tmp_path / "go"), control=listener)
    assert listener.lines == []
    assert listener.outputs == [(0, {"partial": 1})]


async def test_lines_still_go_to_the_log_of_the_process(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    listener = Listener()
    await pool.run(steps.tell, "so", control=listener)
    said, logged = capfd.readouterr()
    assert (said, logged) == ("printed so\n", "written so\nlogged so\n")
    assert listener.lines == ["printed so", "written so", "logged so"]


async def test_what_is_masked_is_masked_there_too(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    class Veiled(Listener):
        followed = True

        def __init__(self, routing: LogRouting) -> None:
            super().__init__()
            self.log_routing = routing
            self.veil = Veil()
            self.veil.masks.add("hunter2")

    with LogRouting() as routing:
        listener = Veiled(routing)
        await pool.run(steps.tell, "hunter2", control=listener)
    said, logged = capfd.readouterr()
    assert said == "printed ***\n"
    assert logged.startswith("written ***\n")
    assert listener.lines == ["printed hunter2", "written hunter2", "logged hunter2"]  # each once; a run masks its own
    assert "hunter2" not in logged


async def test_what_a_step_shows_is_drawn_in_its_process(pool: Pool) -> None:
    class Gallery(Listener):
        def visualize(self, step_name: str | None, value: Any, name: str | None) -> None:
            self.heard.append((EventType.VISUALIZATION, step_name, value, None, name))

    gallery = Gallery()
    await pool.run(steps.show, control=gallery)
    drawn = Rendered("text/html", b"<b>drawn</b>")
    assert gallery.heard[0] == (EventType.VISUALIZATION, "show", drawn, None, "a drawing")
    assert "object could not be shown" in gallery.lines[0]


async def test_streams_are_told_item_by_item_and_their_value_is_the_list(pool: Pool) -> None:
    listener = Listener()
    assert await pool.run(steps.count_to, 4, control=listener) == [0, 1, 2, 3]
    assert listener.outputs == [(0, 0), (1, 1), (2, "between"), (3, 2), (4, 3)]
    assert await pool.run(steps.squares, 3) == [0, 1, 4]
    assert await pool.run(steps.count_later, 3) == [0, 1, 2]
    assert await pool.run(steps.count_to, 0) == []
    listener = Listener()
    with pytest.raises(LookupError, match="no more"):
        await pool.run(steps.yield_then_fail, control=listener)
    assert listener.outputs == [(0, 1)]


async def test_a_stream_that_is_still_yielded_is_read_to_its_end_first(pool: Pool) -> None:
    class Growing(Stream[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("it would hold up the loop")

        async def __aiter__(self) -> AsyncIterator[int]:
            for number in range(4):
                await asyncio.sleep(0)
                yield number

    assert await pool.run(steps.total, Growing()) == 6


async def test_a_process_that_a_step_forks_does_not_disturb_what_it_says(pool: Pool) -> None:
    listener = Listener()
    pid = await pool.run(steps.fork_and_speak, control=listener)
    assert listener.lines == ["from the step"]
    assert (await pool.run(steps.whoami))[1] == pid


async def test_what_a_thread_says_after_its_step_is_nobodys(pool: Pool, tmp_path: Path) -> None:
    await pool.run(steps.leave_a_thread)
    listener = Listener()
    (tmp_path / "release-a").touch()
    for _ in range(50):  # the thread of the same process goes on meanwhile
        await pool.run(steps.hold, "a", str(tmp_path), control=listener)
    assert len(pool.processes) == 1
    assert listener.lines == []


async def test_a_step_that_floods_takes_no_memory_here(pool: Pool) -> None:
    class Deaf(LocalRun):
        heard = 0

        def report(self, *_: Any, message: str | None = None, **__: Any) -> None:
            self.heard += len(str(message))

    deaf = Deaf()
    await pool.run(steps.whoami)
    tracemalloc.start()
    try:
        await pool.run(steps.flood, 6_400, 16_000, control=deaf)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert deaf.heard == 102_400_000
    assert peak < 5_000_000


async def test_one_endless_line_is_cut_and_says_so(pool: Pool) -> None:
    listener = Listener()
    await pool.run(steps.flood, 1, 20_000_000, control=listener)
    (line,) = listener.lines
    assert len(line) < 20_000
    assert listener.heard[0][2] == {"logger": "author", "cut": True}


# ---- values and errors


async def test_large_values_cross_both_ways(pool: Pool) -> None:
    value = os.urandom(5_000_000)
    assert await pool.run(steps.echo, value) == value
    assert await pool.run(steps.echo, [value, {"of": value}]) == [value, {"of": value}]


async def test_an_argument_that_cannot_be_pickled_is_named(pool: Pool) -> None:
    lock = asyncio.Lock().locked  # a bound method of something that pickles …
    with socket.socket() as file:  # … and what does not
        with pytest.raises(TypeError, match=r"argument 'value' \(socket\) can't be sent to the step's process"):
            await pool.run(steps.echo, file)
        with pytest.raises(TypeError, match=r"argument 'other' \(list\) can't be sent"):
            await pool.run(steps.echo, 1, other=[file, lock])
    assert pool.processes == []  # none was started for it


async def test_a_value_that_cannot_be_pickled_is_an_error_in_words(pool: Pool) -> None:
    with pytest.raises(TypeError, match=r"its value \(lock\) can't be sent from the step's process"):
        await pool.run(steps.not_picklable)


async def test_what_a_step_raises_is_raised_here_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(KeyError, match="missing") as caught:
        await pool.run(steps.fail, "plain")
    assert 'raise KeyError("missing")' in str(caught.value.__cause__)
    assert "processes/child.py" not in str(caught.value.__cause__)

    with pytest.raises(InvocationError, match="there is none") as answered:
        await pool.run(steps.fail, "answer")
    assert (answered.value.status, answered.value.code) == (404, "no_such_thing")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("needs two", "NeedsTwo: a and b"),
        ("holds lock", "HoldsLock: holds a lock"),
        ("exit", "SystemExit: 3"),
    ],
)
async def test_an_exception_that_cannot_cross_is_told_by_name(pool: Pool, how: str, words: str) -> None:
    with pytest.raises(StepFailedError, match=f"^step 'fail' failed: {words}$") as caught:
        await pool.run(steps.fail, how)
    assert "process_steps.py" in str(caught.value.__cause__)
    assert len(pool.processes) == 1  # it is still good


# ---- how a process ends


@pytest.mark.parametrize(
    ("how", "words", "code"),
    [
        ("SIGSEGV", "SIGSEGV", -11),
        ("SIGKILL", "SIGKILL; killed from outside, or for want of memory", -9),
        ("exit", "exit code 7", 7),
    ],
)
async def test_a_process_that_dies_fails_its_step_in_words(pool: Pool, how: str, words: str, code: int) -> None:
    listener = Listener()
    with pytest.raises(ProcessDiedError) as caught:
        await pool.run(steps.die, how, control=listener)
    assert str(caught.value) == f"step 'die' failed: its process died ({words})"
    assert (caught.value.exit_code, caught.value.step) == (code, "die")
    assert listener.lines == ["last words"]
    await pool.run(steps.whoami)  # another one is started


@pytest.mark.parametrize("how", ["asleep", "in C, with the interpreter's lock", "with a process of its own"])
async def test_a_cancel_kills_the_process_whatever_it_does(pool: Pool, how: str) -> None:
    listener = Listener()
    call = asyncio.create_task(pool.run(steps.hang, how, control=listener))
    lines = await listener.lines_when(2 if how == "with a process of its own" else 1)
    pids = [int(line.removeprefix("pid ")) for line in lines]
    await cancelled(call)
    assert pool.processes == []
    assert not psutil.pid_exists(pids[0])  # no zombie either
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert (await pool.run(steps.whoami))[1] not in pids


async def test_an_idle_process_that_dies_is_replaced(pool: Pool) -> None:
    _, pid = await pool.run(steps.whoami)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool.processes == [])
    assert (await pool.run(steps.whoami))[1] != pid


async def test_calls_beyond_the_limit_wait_in_order(pool: Pool, tmp_path: Path) -> None:
    def started() -> list[str]:
        return sorted(path.name.removeprefix("started-") for path in tmp_path.glob("started-*"))

    calls = {label: asyncio.create_task(pool.run(steps.hold, label, str(tmp_path))) for label in "abcde"}
    await until(lambda: started() == ["a", "b"])
    assert len(pool.processes) == 2
    await cancelled(calls["c"])  # it has waited in vain, and costs no place
    (tmp_path / "release-b").touch()
    assert (await calls["b"])[0] == "b"
    await until(lambda: started() == ["a", "b", "d"])
    await cancelled(calls["a"])  # its place is free when its process is dead
    await until(lambda: started() == ["a", "b", "d", "e"])
    for label in "de":
        (tmp_path / f"release-{label}").touch()
    assert [(await calls[label])[0] for label in "de"] == ["d", "e"]
    assert len(pool.processes) == 2


async def test_closing_lets_idle_processes_clean_up_and_kills_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROCESS_STEPS_FOLDER", str(tmp_path))
    async with pool_of(steps.with_hooks) as pool:
        calls = [asyncio.create_task(pool.run(steps.hold, label, str(tmp_path))) for label in "ab"]
        await until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        pids = pool.processes
        (tmp_path / "release-a").touch()
        _, idle = await calls[0]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    with pytest.raises(DrainingError):
        await calls[1]
    with pytest.raises(DrainingError):
        await pool.run(steps.whoami)
    assert set(os.listdir(tmp_path)) - {f"closed-{idle}"} == {"started-a", "started-b", "release-a"}
    assert (tmp_path / f"closed-{idle}").exists()


async def test_calls_that_wait_when_the_pool_closes_are_refused(tmp_path: Path) -> None:
    async with pool_of(max_processes=1) as pool:
        calls = [asyncio.create_task(pool.run(steps.hold, label, str(tmp_path))) for label in "abc"]
        await until((tmp_path / "started-a").exists)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [DrainingError] * 3
    assert pool.processes == []


async def test_a_process_has_no_socket_of_this_one(pool: Pool) -> None:
    with socket.socket() as store:
        store.set_inheritable(True)
        mine = os.readlink(f"/proc/self/fd/{store.fileno()}")
        assert mine not in await pool.run(steps.descriptors)


async def test_a_process_ignores_ctrl_c(pool: Pool) -> None:
    assert await pool.run(steps.interrupt_myself) == "still here"


def test_it_works_on_uvloop_too(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        async with pool_of(max_processes=1) as pool:
            assert await pool.run(steps.count_to, 3) == [0, 1, 2]
            value = os.urandom(3_000_000)
            assert await pool.run(steps.echo, value) == value
            call = asyncio.create_task(pool.run(steps.hold, "a", str(tmp_path)))
            await until((tmp_path / "started-a").exists)
            await cancelled(call)
            with pytest.raises(ProcessDiedError, match="SIGSEGV"):
                await pool.run(steps.die, "SIGSEGV")
            await pool.run(steps.whoami)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


# ---- how a process finds its step


class Here:
    @staticmethod
    @step(executor="process")
    def nested() -> int:
        return os.getpid()


async def test_a_step_inside_a_class_is_found(pool: Pool) -> None:
    assert await pool.run(Here.nested) in pool.processes


@step
def in_a_thread() -> None: ...


def rebound() -> None: ...


first_rebound = step(executor="process")(rebound)
rebound = 1  # pyright: ignore[reportAssignmentType] - the point


def test_steps_that_no_other_process_can_import_are_refused_in_words() -> None:
    def local() -> None: ...

    def definition(fn: Callable[..., Any]) -> Any:
        return step(name="odd")(fn).definition

    for fn, why in [
        (local, r"<locals>\.local is made inside another function"),
        (lambda: 1, "a lambda has no name to find it by"),
        (len, "<built-in function len> is no function of a module"),
        (first_rebound.fn, r"test_processes\.rebound is something else by now"),
    ]:
        with pytest.raises(DefinitionError, match=f"^step 'odd': executor=\"process\" needs .*{why}"):
            StepPlace.of(definition(fn))


def test_a_pool_refuses_what_its_processes_could_not_import() -> None:
    @pipeline(on_init=dict)
    def served() -> None:
        steps.whoami()

    @pipeline
    def calls_rebound() -> None:
        first_rebound()

    @pipeline(on_init=dict)
    def threads_only() -> None:
        in_a_thread()

    with pytest.raises(DefinitionError, match=r"^pipeline 'served': its on_init must run in the processes"):
        pool_of(served)
    with pytest.raises(DefinitionError, match=r"^step 'rebound': "):
        pool_of(calls_rebound)
    pool_of(threads_only)


async def test_a_pipeline_from_a_file_that_no_name_leads_to_is_found(tmp_path: Path) -> None:
    path = tmp_path / "no-module-name.py"
    (tmp_path / "sibling_of_it.py").write_text("FACTOR = 3\n")
    path.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from sibling_of_it import FACTOR
        from pipeserve import get_context, pipeline, step

        @dataclass
        class Point:
            x: int

        @step(executor="process")
        def triple(point: Point) -> Point:
            return Point(point.x * FACTOR + get_context().pipeline_state)

        @pipeline(on_init=lambda: 100)
        def served(point: Point) -> Point:
            return triple(point)
        """)
    )
    before = list(sys.path)
    try:
        served = load_target(f"{path}:served").pipeline
        module = sys.modules[served.definition.fn.__module__]
        async with pool_of(served) as pool:
            assert await pool.run(module.triple, module.Point(2)) == module.Point(106)
    finally:
        sys.path[:] = before
        for name in [name for name, module in sys.modules.items() if str(tmp_path) in repr(module)]:
            del sys.modules[name]


MAIN = """
    import asyncio, os, signal, sys
    from dataclasses import dataclass
    {extra}
    from pipeserve import get_context, pipeline, step
    from pipeserve.runtime.processes import ProcessPool
    from pipeserve.sdk.context import LocalRun

    @dataclass
    class Point:
        x: int

    @step(executor="process")
    def double(point: Point) -> Point:
        return Point(point.x * 2 + get_context().pipeline_state)

    @step(executor="process")
    def hang() -> None:
        sys.stdout.write(f"{{os.getpid()}}\\n")
        sys.stdout.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        signal.pause()

    @pipeline(on_init=lambda: 1)
    def served(point: Point) -> Point:
        return double(point)

    async def main() -> None:
        async with ProcessPool(served.definition, max_processes=2) as pool:
            if sys.argv[1:] == ["hang"]:
                await pool.call(hang.definition, "hang", (), {{}}, LocalRun())
            print(await pool.call(double.definition, "double", (Point(3),), {{}}, LocalRun()) == Point(7))

    if __name__ == "__main__":
        asyncio.run(main())
"""


def run_script(*command: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_steps_of_a_script_are_found(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(MAIN.format(extra="")))
    assert run_script("script.py", folder=tmp_path) == "True\n"


def test_steps_of_a_module_that_is_run_are_found_and_its_relative_imports_work(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "other.py").touch()
    (tmp_path / "package" / "script.py").write_text(textwrap.dedent(MAIN.format(extra="from . import other")))
    assert run_script("-m", "package.script", folder=tmp_path) == "True\n"


def test_a_process_dies_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(MAIN.format(extra="")))
    with subprocess.Popen(
        [sys.executable, "script.py", "hang"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait()
