"""The file of API keys: who may call a service, and what they may do there.

The file holds digests only, so that whoever reads it can't call the service. A plain SHA-256 is enough: keys are made
here (:func:`new_key`) from 256 random bits, which nobody guesses, however fast the digest is.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeserve.errors import ConfigurationError

PREFIX = "psk_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""A caller's name: 1 to 64 letters, digits, dots, underscores and hyphens."""
_HASH = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LARGEST = 10_000_000
"""Bytes of a file that are read."""


class KeyScope(StrEnum):
    """What a key opens."""

    INVOKE = "invoke"
    """Start runs."""
    READ = "read"
    """Read one's own jobs, and what is served."""
    CANCEL = "cancel"
    """Cancel one's own jobs."""
    ADMIN = "admin"
    """Everything, for the jobs of all callers."""


DEFAULT_SCOPES: tuple[KeyScope, ...] = (KeyScope.INVOKE, KeyScope.READ, KeyScope.CANCEL)
"""What a key opens that does not say."""


def _check_name(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise ValueError("1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit")
    return name


def _check_hash(text: str) -> str:
    if _HASH.fullmatch(text) is None:
        raise ValueError("must be sha256: and 64 hexadecimal digits, as `pipeserve keys new` gives")
    return text


class KeyEntry(BaseModel):
    """One key. Several with one name are one caller: so a key is replaced, and its jobs stay whose they were."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_check_name)]
    hash: Annotated[str, AfterValidator(_check_hash)]
    scopes: frozenset[KeyScope] = Field(default=frozenset(DEFAULT_SCOPES), min_length=1)
    requests_per_minute: int | None = Field(default=None, gt=0)
    runs_per_day: int | None = Field(default=None, gt=0)
    expires: datetime | None = None

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key."""
        return bytes.fromhex(self.hash.removeprefix("sha256:"))

    def expired(self, now: float) -> bool:
        """Whether it is good no more at this Unix time. A moment without a zone is UTC."""
        if self.expires is None:
            return False
        moment = self.expires if self.expires.tzinfo is not None else self.expires.replace(tzinfo=UTC)
        return moment.timestamp() <= now


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: tuple[KeyEntry, ...] = ()


def new_key() -> str:
    """A key that nobody has yet."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def stanza(name: str, key: str, scopes: Sequence[KeyScope], expires: datetime | None = None) -> str:
    """The lines that a file needs for ``key``. Raises ValueError for a name that can't be one."""
    named = ", ".join(f'"{scope}"' for scope in scopes)
    lines = [
        "[[keys]]",
        f'name = "{_check_name(name)}"',
        f'hash = "sha256:{digest_of(key.encode()).hex()}"',
        f"scopes = [{named}]",
    ]
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}")
    return "\n".join(lines) + "\n"


def read_key_file(path: Path) -> tuple[KeyEntry, ...]:
    """The keys in this file. Raises ConfigurationError, which quotes nothing of it."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigurationError(f"{path}: a file of keys has at most {_LARGEST} bytes")
        found = _File.model_validate(tomllib.loads(text.decode()))
    except OSError as error:
        raise ConfigurationError(f"{path}: the keys can't be read: {error.strerror}") from None
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"{path}: {told}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and a very deep array
        where = re.search(r"at line \d+", str(error))
        raise ConfigurationError(f"{path}: not TOML{' ' + where[0] if where else ''}") from None
    digests = [entry.hash for entry in found.keys]
    if len(set(digests)) < len(digests):
        raise ConfigurationError(f"{path}: two entries have the same hash")
    _check_callers(path, found.keys)
    return found.keys


def _check_callers(path: Path, entries: Sequence[KeyEntry]) -> None:
    """One caller has one set of limits, whichever of its keys it sends."""
    seen: dict[str, KeyEntry] = {}
    for entry in entries:
        first = seen.setdefault(entry.name, entry)
        same = first.requests_per_minute == entry.requests_per_minute and first.runs_per_day == entry.runs_per_day
        if not same:
            raise ConfigurationError(f"{path}: the keys of {entry.name} have different limits")
