"""A step call that has policies, from the outside in: checkpoint, cache, retry, and the way the function is called.

A call without policies never comes here (:attr:`~pipeserve.runtime.step_spec.StepSpec.plain`).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from pipeserve.errors import InvocationError, StepFailedError, TimedOutError
from pipeserve.events import EventType
from pipeserve.runtime.cache import receipts
from pipeserve.runtime.cache.flight_control import FlightControl
from pipeserve.runtime.cache.key import CacheKey, UnhashableArgumentError, cache_key
from pipeserve.runtime.cache.shared_tier import SharedResult, SharedTier
from pipeserve.runtime.cache.step_cache import Flight, Hit, NotCopiedError
from pipeserve.runtime.checkpoints import MISSING, JobCheckpoints
from pipeserve.runtime.failures import cause_of, words_of
from pipeserve.runtime.run import RunStopped, StepRecord
from pipeserve.runtime.step_spec import Call
from pipeserve.sdk.context import StepContext, current_scope, run_of
from pipeserve.sdk.definition import Mode
from pipeserve.sdk.stream import Streamed

if TYPE_CHECKING:
    from pipeserve.runtime.step_calls import StepCalls


class StepTimedOutError(TimedOutError, TimeoutError):
    """One try at a step was cut off by the step's own timeout: it may be tried again, or else ends the run.

    A TimeoutError, so that ``Retry(on=(TimeoutError,))`` means it too.
    """


class PolicyCall:
    """One such call. Its context is the current scope."""

    __slots__ = ("_call", "_calls", "_context", "_inputs", "_record", "_spec")

    def __init__(self, calls: StepCalls, context: StepContext, record: StepRecord, call: Call) -> None:
        self._calls = calls
        self._context = context
        self._record = record
        self._call = call
        self._spec = call.spec
        self._inputs: CacheKey | None = None

    # ---- in a thread

    def value(self) -> Any:
        """The value of a sync step, computed here or found. Raises what the step raises, or RunStopped."""
        checkpoints = self._calls.request.checkpoints if self._spec.definition.checkpoint else None
        if checkpoints is not None and (kept := self._recorded(checkpoints)) is not MISSING:
            return self._resumed(kept)
        value = self._tried(self._context) if self._spec.cache is None else self._cached()
        if checkpoints is not None:
            record = checkpoints.record(self._record.name, self._spec, self._inputs, value)
            if record is not None:
                self._calls.wait_on_loop(checkpoints.save(self._record.name, record))
        return value

    def _cached(self) -> Any:
        key = self._key()
        if key is None:
            return self._tried(self._context)
        engine, policy, request = self._calls.engine, self._spec.cache, self._calls.request
        assert policy is not None
        step = self._spec.definition.name
        # A thread that waits for another is fine; the loop's own thread must not wait for anybody.
        follow = not engine.on_loop_thread
        while True:
            found = engine.cache.enter(step, key, policy, read=request.cache_read, follow=follow)
            if isinstance(found, Hit):
                return self._hit(found)
            found.flight.wait_until(self._calls.deadline)
            if found.leads:
                self._record.cache = receipts.miss(found.miss)
                return self._lead(found.flight, key)
            try:
                return self._joined(found.flight, self._wait(found.flight))
            except RunStopped:  # of the one who led, or this run's own
                self._calls.checkpoint()
            except NotCopiedError:  # the policy says copy, and the value has none
                follow = False

    def _lead(self, flight: Flight, key: CacheKey) -> Any:
        cache, tier = self._calls.engine.cache, self._calls.engine.shared_tier
        context = self._flight_context(flight)
        shared = tier if self._spec.cache is not None and self._spec.cache.scope == "shared" else None
        asks = shared is not None and self._calls.request.cache_read and not self._calls.engine.on_loop_thread
        with self._calls.leading(flight):
            try:
                found = self._calls.wait_on_loop(shared.find(self._spec, key)) if shared is not None and asks else None
                started = time.perf_counter()
                value = self._tried(context, flight) if found is None else found.value
                self._completed(flight, value, time.perf_counter() - started, found)
            except BaseException as error:  # whatever it is, those who wait for this call must learn of it
                cache.fail(flight, error)
                raise
            if found is None:
                self._share(shared, key, value, flight.seconds)
        return value if found is None else self._shared_hit(found)

    def _tried(self, context: StepContext, flight: Flight | None = None) -> Any:
        token = current_scope.set(context)
        try:
            attempt = 1
            while True:
                try:
                    return self._once(context)
                except Exception as error:
                    pause = self._pause_after(error, attempt, context)
                    if pause is None:
                        raise
                self._calls.pause(pause, flight)
                attempt += 1
                self._record.calls = attempt
        finally:
            if context is not self._context:
                context.end_print()
            current_scope.reset(token)

    def _once(self, context: StepContext) -> Any:
        timeout = self._spec.timeout
        context.restart(timeout)
        if timeout is not None:
            self._calls.arm(self._record, timeout)
        try:
            value = self._call()
            return self._calls.drain(value, context) if self._spec.mode is Mode.GENERATOR else value
        finally:
            if timeout is not None:
                self._calls.disarm(self._record)

    def _wait(self, flight: Flight) -> Any:
        """What the leader of an equal call computes. Raises RunStopped if this run must stop meanwhile."""
        woken = threading.Event()
        forget = flight.on_done(woken.set)
        # The leader's own run is stopped by the step's timeout; its thread may go on, and nobody must wait for ever.
        retry, timeout = self._spec.definition.retry, self._spec.timeout
        if timeout is not None:
            self._calls.arm(self._record, timeout if retry is None else retry.longest(timeout))
        try:
            with self._calls.on_stop(woken.set):
                woken.wait()
        finally:
            forget()
            if timeout is not None:
                self._calls.disarm(self._record)
        if not flight.done:
            flight.leave()
            self._calls.checkpoint()
        return flight.result()

    # ---- on the loop

    async def value_async(self) -> Any:
        """The same for what runs on the loop."""
        checkpoints = self._calls.request.checkpoints if self._spec.definition.checkpoint else None
        if checkpoints is not None and (kept := self._recorded(checkpoints)) is not MISSING:
            return self._resumed(kept)
        try:
            cached = self._spec.cache is not None
            value = await (self._cached_async() if cached else self._tried_async(self._context))
        except StepTimedOutError as error:
            self._calls.expire(error)
            raise RunStopped from error
        if checkpoints is not None:
            record = checkpoints.record(self._record.name, self._spec, self._inputs, value)
            if record is not None:
                await checkpoints.save(self._record.name, record)
        return value

    async def _cached_async(self) -> Any:
        key = self._key()
        if key is None:
            return await self._tried_async(self._context)
        engine, policy, request = self._calls.engine, self._spec.cache, self._calls.request
        assert policy is not None
        step, follow = self._spec.definition.name, True
        while True:
            found = engine.cache.enter(step, key, policy, read=request.cache_read, follow=follow)
            if isinstance(found, Hit):
                return self._hit(found)
            found.flight.wait_until(self._calls.deadline)
            if found.leads:
                self._record.cache = receipts.miss(found.miss)
                return await self._wait_async(found.flight, self._take_off(found.flight, key))
            try:
                return self._joined(found.flight, await self._wait_async(found.flight, None))
            except RunStopped:
                self._calls.checkpoint()
            except NotCopiedError:
                follow = False

    def _take_off(self, flight: Flight, key: CacheKey) -> asyncio.Task[None]:
        """Compute in a task of its own, so that it outlives its leader while others wait."""
        engine = self._calls.engine
        task = engine.loop.create_task(self._fly(flight, key), context=contextvars.copy_context())
        engine.in_background(task)
        flight.on_abandoned(lambda: engine.loop.call_soon_threadsafe(task.cancel))
        return task

    async def _fly(self, flight: Flight, key: CacheKey) -> None:
        cache, tier, request = self._calls.engine.cache, self._calls.engine.shared_tier, self._calls.request
        policy = self._spec.cache
        shared = tier if policy is not None and policy.scope == "shared" else None
        try:
            found = await shared.find(self._spec, key) if shared is not None and request.cache_read else None
            started = time.perf_counter()
            value = await self._tried_async(self._flight_context(flight)) if found is None else found.value
            if found is not None:
                self._shared_hit(found)
            self._completed(flight, value, time.perf_counter() - started, found)
        except asyncio.CancelledError:
            name = self._record.name
            own = StepFailedError(f"step {name!r} failed: it was cancelled by its own code", step=name)
            cache.fail(flight, RunStopped() if flight.abandoned else own)
        except BaseException as error:  # whatever it is, those who wait for this call must learn of it
            cache.fail(flight, error)
        else:
            if found is None:
                self._share(shared, key, value, flight.seconds)

    async def _wait_async(self, flight: Flight, task: asyncio.Task[None] | None) -> Any:
        loop = self._calls.engine.loop
        landed: asyncio.Future[None] = loop.create_future()

        def land() -> None:
            if not landed.done():
                landed.set_result(None)

        forget = flight.on_done(lambda: loop.call_soon_threadsafe(land))
        try:
            await landed
        except asyncio.CancelledError:
            if flight.leave() and task is not None:
                await asyncio.wait([task])  # nobody else wants it: the run has stopped once this has
            raise
        finally:
            forget()
        return flight.result(leads=task is not None)

    async def _tried_async(self, context: StepContext) -> Any:
        token = current_scope.set(context)
        try:
            attempt = 1
            while True:
                try:
                    return await self._once_async(context)
                except Exception as error:
                    pause = self._pause_after(error, attempt, context)
                    if pause is None:
                        raise
                await asyncio.sleep(pause)
                attempt += 1
                self._record.calls = attempt
        finally:
            if context is not self._context:
                context.end_print()
            current_scope.reset(token)

    async def _once_async(self, context: StepContext) -> Any:
        timeout = self._spec.timeout
        scope = asyncio.timeout(None)

        def begun() -> None:
            context.restart(timeout)
            if timeout is not None:
                scope.reschedule(self._calls.engine.loop.time() + timeout)

        try:
            async with scope:
                if self._spec.definition.executor == "process":
                    return await self._called_in_process(context, begun)
                begun()
                return await self._called_async(context)
        except TimeoutError:
            if not scope.expired():  # the step's own
                raise
        name = self._record.name
        raise StepTimedOutError(f"step {name!r} took longer than its timeout of {timeout:g} s.", step=name)

    async def _called_in_process(self, context: StepContext, begun: Callable[[], object]) -> Any:
        """Its timeout begins when the step does: a new process's imports may take longer, and killed it never warms."""
        call = self._call
        context.restart(None)
        pool = await self._calls.engine.open_processes()
        return await pool.call(self._spec.definition, self._record.name, call.args, call.kwargs, context, begun=begun)

    async def _called_async(self, context: StepContext) -> Any:
        engine, spec, call = self._calls.engine, self._spec, self._call
        if spec.definition.batch is not None:
            answer = await engine.batches.call(call, context)
            self._record.batch = answer.size
            return answer.value
        value = call()
        if spec.mode is Mode.ASYNC_GENERATOR:
            return await self._calls.drain_async(value, context)
        return await cast(Awaitable[Any], value)

    # ---- both

    def _key(self) -> CacheKey | None:
        """The call's cache key; None, with a receipt that says why, where it has none."""
        policy = self._spec.cache
        assert policy is not None
        try:
            return cache_key(self._spec.definition.name, self._spec.cache_code, self._call.arguments(), policy)
        except UnhashableArgumentError as error:
            self._record.cache = receipts.unhashable(error)
            return None

    def _recorded(self, checkpoints: JobCheckpoints) -> Any:
        """The result that an earlier attempt has recorded for this call; MISSING if there is none."""
        self._inputs = self._input_key()
        return checkpoints.find(self._record.name, self._spec, self._inputs)

    def _input_key(self) -> CacheKey | None:
        """What a checkpoint of this call is bound to; None: inputs that can't be compared, so it is never used."""
        try:
            return cache_key(
                self._spec.definition.name, self._spec.code, self._call.arguments(), receipts.ALL_ARGUMENTS
            )
        except UnhashableArgumentError:
            return None

    def _pause_after(self, error: Exception, attempt: int, context: StepContext) -> float | None:
        """Seconds until the call is tried again; None: ``error`` is its end."""
        retry = self._spec.definition.retry
        if retry is None:
            return None
        cause = cause_of(error)  # a group is as good as what it stands for
        if isinstance(cause, InvocationError) or not (retry.wants(error, attempt) or retry.wants(cause, attempt)):
            return None
        if self._spec.mode.streams and context.emitted:
            return None  # what it has yielded is told: once more would tell it twice
        # A `def` step that an async body calls plainly is tried again at once: waiting would hold up all requests.
        here = not self._spec.on_loop and self._calls.engine.on_loop_thread
        pause = 0.0 if here else retry.pause(attempt)
        if run_of(context).remaining() <= pause or context.cancelled:
            return None
        problem = self._calls.problem(error, self._record.name)
        self._calls.report(
            EventType.STEP_RETRYING,
            self._record.name,
            {"call": attempt, "calls": retry.attempts, "delay": round(pause, 6)},
            level="warning",
            message=f"call {attempt} of {retry.attempts} failed: {type(error).__name__}: {words_of(error)}",
            error=problem,
        )
        return pause

    def _flight_context(self, flight: Flight) -> StepContext:
        context = StepContext(FlightControl(self._calls, flight), self._record.name)
        context.live = self._context.live
        return context

    def _hit(self, hit: Hit) -> Any:
        self._record.cached = True
        self._record.cache = receipts.hit(hit)
        return self._replayed(hit.value)

    def _shared_hit(self, found: Any) -> Any:
        self._record.cached = True
        self._record.cache = receipts.shared_hit(found)
        return self._replayed(found.value)

    def _joined(self, flight: Flight, value: Any) -> Any:
        self._record.cached = True
        self._record.cache = receipts.joined(flight)
        return self._replayed(value)

    def _resumed(self, value: Any) -> Any:
        self._record.resumed = True
        return self._replayed(value)

    def _replayed(self, value: Any) -> Any:
        """``value``, which was not computed here: a stream's yields are told again, for those who follow this run."""
        if self._spec.mode.streams:
            live = self._context.live
            for item in cast(Iterable[Any], value):
                self._context.emit(item)
                if live is not None:
                    live.put(item)
            return Streamed(value) if live is None else live.values
        return value

    def _completed(self, flight: Flight, value: Any, seconds: float, found: SharedResult | None) -> None:
        """The flight has its value: from the other tier, where ``found``, else computed in ``seconds``."""
        cache = self._calls.engine.cache
        if found is not None:
            cache.complete(flight, value, found.seconds, ttl=found.ttl)
            return
        stored = cache.complete(flight, value, seconds, store=self._calls.request.cache_write)
        if self._record.cache is not None:
            self._record.cache["stored"] = stored

    def _share(self, tier: SharedTier | None, key: CacheKey, value: Any, seconds: float) -> None:
        if tier is not None and self._calls.request.cache_write:
            tier.keep(self._spec, key, value, seconds)
