"""Artifacts: outputs that are too large for a job's record, as files in a folder or bucket.

The record holds a reference in the value's place, and ``GET /jobs/{id}/artifacts/{name}`` sends the bytes. A file's
place is ``<root>/<deployment>/<day>/<job>/<digest>-<name>``: by day, so that old ones go at once, and by digest, so
that an attempt which was thought dead never changes what another one has recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from pipeserve.errors import ConfigurationError, PipeserveError
from pipeserve.jobs import is_job_id
from pipeserve.runtime.threads import ThreadPool
from pipeserve.runtime.values.artifact_ref import Artifact, ArtifactRef

T = TypeVar("T")

CHUNK = 262_144
"""Bytes that are read at once."""
_THREADS = 8  # files that one process writes or reads at once
_SWEEP_EVERY = 3600.0  # seconds
_MARGIN = timedelta(days=1)  # a job may be finished long after its outputs were written, when the store is away
_LOCAL = ("file", "local")

_log = logging.getLogger(__name__)


class ArtifactError(PipeserveError):
    """The artifacts' folder or bucket could not be written or read. Another try may have a chance."""


class ArtifactMissingError(ArtifactError):
    """There is no such file where this process looks for it."""


class ArtifactFile:
    """An artifact that is open for reading."""

    def __init__(self, file: Any, size: int, threads: ThreadPool) -> None:
        self.size = size
        """In bytes."""
        self._file = file
        self._threads = threads

    async def chunks(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Its bytes from ``start`` to before ``stop``, a piece at a time. Raises ArtifactError."""
        left = (self.size if stop is None else stop) - start
        await _in_thread(self._threads, lambda: self._file.seek(start))
        while left > 0:
            chunk: bytes = await _in_thread(self._threads, partial(self._file.read, min(CHUNK, left)))
            if not chunk:
                raise ArtifactError("an artifact's file ended before its size")
            left -= len(chunk)
            yield chunk


class ArtifactStore:
    """The artifacts of one deployment. While entered, it removes those of past days, at once and then hourly."""

    def __init__(self, url: str, deployment_id: str, lifetime: float) -> None:
        """``url``: a folder's path, or a folder or bucket as fsspec names it.

        ``lifetime``: seconds for which a job's record is kept, and so its artifacts at least.
        """
        self._url = url
        self._deployment_id = deployment_id
        self._lifetime = lifetime
        self._threads = ThreadPool(_THREADS, "artifacts")
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Raises ConfigurationError for a URL that fsspec has no library for."""
        self._check_url()
        self._sweeper = asyncio.create_task(self._sweep_again_and_again(), name="artifact-sweeper")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        self._threads.close(0)

    # ---- one artifact

    async def write(self, artifact: Artifact, *, at: float | None = None) -> None:
        """Write its file, whole or not at all, into the day of ``at`` (Unix time; None: now). Raises ArtifactError."""
        day = datetime.fromtimestamp(time.time() if at is None else at, UTC).date()

        def write() -> None:
            files, root = self._files()
            self._put(files, self._path(root, day, artifact.job_id, artifact.ref), artifact.data)

        await _in_thread(self._threads, write)

    @asynccontextmanager
    async def open(self, job_id: str, ref: ArtifactRef, near: datetime) -> AsyncGenerator[ArtifactFile]:
        """Its file, for reading. ``near``: when the job finished. Raises ArtifactMissingError, ArtifactError."""
        file, size = await _in_thread(self._threads, lambda: self._open(job_id, ref, near))
        try:
            yield ArtifactFile(file, size, self._threads)
        finally:
            self._threads.submit(lambda: _close(file))

    async def delete(self, artifact: Artifact, *, at: float | None = None) -> None:
        """Remove its file, if it is there. Raises ArtifactError."""
        near = datetime.fromtimestamp(time.time() if at is None else at, UTC)

        def delete() -> None:
            files, root = self._files()
            for day in _days_near(near):
                with contextlib.suppress(FileNotFoundError):
                    files.rm_file(self._path(root, day, artifact.job_id, artifact.ref))

        await _in_thread(self._threads, delete)

    # ---- old ones

    async def sweep(self, older_than: float) -> int:
        """Remove the days that ended more than so many seconds ago, of every deployment; returns how many."""
        return await _in_thread(self._threads, lambda: self._sweep(timedelta(seconds=older_than)))

    async def _sweep_again_and_again(self) -> None:
        while True:
            try:
                await self.sweep(self._lifetime + _MARGIN.total_seconds())
            except ArtifactError as error:
                _log.warning("old artifacts could not be removed: %s", error)
            await asyncio.sleep(_SWEEP_EVERY)

    def _sweep(self, older_than: timedelta) -> int:
        local = self._local_path()
        if local is not None and not local.exists():
            return 0  # and fsspec need not be loaded
        files, root = self._files()
        first_kept = (datetime.now(UTC) - older_than).date()
        old = [
            path
            for deployment in _listed(files, root)
            if is_job_id(_last(deployment))  # a deployment's id is a UUID too; whatever else is there isn't ours
            for path in _listed(files, deployment)
            if (day := _day_of(path)) is not None and day < first_kept
        ]
        for path in old:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                files.rm(path, recursive=True)
        return len(old)

    # ---- in a thread

    def _files(self) -> tuple[Any, str]:
        """The file system, and the root's path in it."""
        with self._lock:
            if self._opened is None:
                core: Any = import_module("fsspec.core")
                files, root = core.url_to_fs(self._url, use_listings_cache=False)  # others write there too
                self._opened = files, str(root).rstrip("/")
            return self._opened

    def _open(self, job_id: str, ref: ArtifactRef, near: datetime) -> tuple[Any, int]:
        files, root = self._files()
        for day in _days_near(near):
            path = self._path(root, day, job_id, ref)
            with contextlib.suppress(FileNotFoundError):
                size = int(files.size(path))
                if size == ref.size:
                    return files.open(path, "rb"), size
        raise ArtifactMissingError(f"no file of {ref.name} of job {job_id}")

    def _put(self, files: Any, path: str, data: bytes) -> None:
        target = path
        if self._local_path() is not None:  # elsewhere a file is there whole or not at all
            target = f"{path}.{secrets.token_hex(4)}.part"
        try:
            try:
                files.pipe_file(target, data)
            except FileNotFoundError:  # no such folder, where there are folders
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.pipe_file(target, data)
            if target != path:
                os.replace(target, path)
        except BaseException:
            if target != path:
                with contextlib.suppress(OSError):
                    os.unlink(target)
            raise

    def _path(self, root: str, day: date, job_id: str, ref: ArtifactRef) -> str:
        return f"{root}/{self._deployment_id}/{day.isoformat()}/{job_id}/{ref.sha256[:16]}-{ref.name}"

    # ---- the URL

    def _local_path(self) -> Path | None:
        protocol, separator, rest = self._url.partition("://")
        if not separator:
            return Path(self._url)
        return Path(rest) if protocol in _LOCAL else None

    def _check_url(self) -> None:
        if self._local_path() is not None:
            return
        protocol = self._url.partition("://")[0]
        try:
            import_module("fsspec").get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            hint = _EXTRAS.get(protocol)
            advice = f"; pip install 'pipeserve[{hint}]'" if hint else ""
            raise ConfigurationError(f"PIPESERVE_ARTIFACTS_URL={protocol}://…: {error}{advice}") from None


_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Which extra of ours brings the library of a protocol."""


async def _in_thread(threads: ThreadPool, call: Callable[[], T]) -> T:
    try:
        return await threads.call(call)
    except FileNotFoundError as error:
        raise ArtifactMissingError(str(error)) from error
    except ArtifactError:
        raise
    except Exception as error:  # each file system has errors of its own, and no base class for them
        raise ArtifactError(f"{type(error).__name__}: {error}") from error


def _days_near(near: datetime) -> list[date]:
    """The days on which the outputs of a job that finished then may have been written: midnight, clocks."""
    day = near.astimezone(UTC).date()
    return [day, day - timedelta(days=1), day + timedelta(days=1)]


def _day_of(path: str) -> date | None:
    name = _last(path)
    try:
        return date.fromisoformat(name) if len(name) == len("2026-01-31") else None
    except ValueError:
        return None


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _listed(files: Any, path: str) -> list[str]:
    """What stands in a folder, by path."""
    try:
        return list(cast(list[str], files.ls(path, detail=False)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _close(file: Any) -> None:
    with contextlib.suppress(Exception):  # it was only read, and its file system may be gone by now
        file.close()
