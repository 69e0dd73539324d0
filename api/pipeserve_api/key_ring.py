"""The keys that open a service: those of its setting, and those of its file, which is read again when it changes."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from pipeserve.errors import ConfigurationError
from pipeserve.key_file import KeyEntry, digest_of, read_key_file
from pipeserve.settings import ServiceSettings
from pipeserve_api.callers import Caller
from pipeserve_api.tokens import several

CHECK_INTERVAL = 1.0
"""Seconds for which a change of the file may go unnoticed."""
_NAME_LENGTH = 16

_log = logging.getLogger(__name__)


class KeyRing:
    """Finds out whose key was presented.

    Look-ups are by a digest with a secret of this process in it: nobody outside can tell what a look-up compares, so
    the time that it takes tells nothing of any key.
    """

    def __init__(
        self, keys: Iterable[str] = (), file: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigurationError for a file that can't be used."""
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        digests = [digest_of(key.encode()) for key in keys]
        self._fixed = {self._place(digest): Caller(digest.hex()[:_NAME_LENGTH]) for digest in digests}
        self._file = file
        self._state: object = None
        self._entries: Mapping[bytes, tuple[KeyEntry, Caller]] = {}
        self._checked = time.monotonic()
        if file is not None:
            self._state = _state_of(file)
            self._entries = self._read(file)

    @classmethod
    def of(cls, settings: ServiceSettings) -> Self | None:
        """The keys that these settings name; None: no key is needed. Raises ConfigurationError."""
        if not settings.needs_key:
            return None
        keys = [] if settings.auth_key is None else several(settings.auth_key, "ZENML_SERVING_AUTH_KEY")
        return cls(keys, settings.keys_file)

    def caller_with(self, key: bytes) -> Caller | None:
        """Whose key this is; None: it opens nothing (any more)."""
        self._look()
        digest = digest_of(key)
        place = self._place(digest)
        fixed = self._fixed.get(place)
        if fixed is not None:
            return fixed
        entry, caller = self._entries.get(place, (None, None))
        if entry is None or not hmac.compare_digest(entry.digest, digest) or entry.expired(self._clock()):
            return None
        return caller

    def _place(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._checked < CHECK_INTERVAL:
            return
        self._checked = now
        state = _state_of(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._entries = self._read(self._file)
        except ConfigurationError as error:  # the keys before are better than none, or than a service that is down
            _log.error("the file of keys has changed and can't be used; the keys before go on: %s", error)
        else:
            _log.info("the file of keys was read again", extra={"keys": len(self._entries)})

    def _read(self, file: Path) -> Mapping[bytes, tuple[KeyEntry, Caller]]:
        return {self._place(entry.digest): (entry, _caller_of(entry)) for entry in read_key_file(file)}


def _caller_of(entry: KeyEntry) -> Caller:
    return Caller(entry.name, entry.scopes, entry.requests_per_minute, entry.runs_per_day)


def _state_of(file: Path) -> object:
    """What changes when the file does; orchestrators replace it by way of a link."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
