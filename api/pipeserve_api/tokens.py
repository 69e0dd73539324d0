"""Tokens that open one job, for reading, for a while: what a browser puts into a URL instead of a key.

A token is ``pst_``, what it says as base64url of JSON, a dot, and the base64url of that text's HMAC-SHA256. It needs no
store, so every replica with the same secret takes it; it can't be taken back but by changing the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from pydantic import SecretStr

from pipeserve.errors import ConfigurationError, UnauthorizedError
from pipeserve.settings import ServiceSettings

PREFIX = "pst_"
MAX_LENGTH = 512
"""Characters of a token; longer ones are not looked at."""
_TOKEN = re.compile(r"pst_([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})", re.ASCII)
_PURPOSE = b"pipeserve job token"


@dataclass(frozen=True, slots=True)
class Token:
    """A signed text, and when it ends (Unix time in seconds)."""

    text: str
    expires_at: int


class TokenSigner:
    """Signs with the first of its keys and takes what any of them has signed, for jobs of one deployment."""

    def __init__(self, keys: Sequence[bytes], deployment_id: str, *, clock: Callable[[], float] = time.time) -> None:
        self.keys = tuple(keys)
        """The first signs."""
        self._deployment_id = deployment_id
        self._clock = clock

    def sign(self, job_id: str, seconds: float) -> Token:
        """A token that opens this job for so many seconds, up to the next whole one: never for less than was asked."""
        expires_at = math.ceil(self._clock() + seconds)
        said = _encode(orjson.dumps({"job": job_id, "exp": expires_at, "dep": self._deployment_id}))
        return Token(f"{PREFIX}{said}.{_signature(self.keys[0], said)}", expires_at)

    def job_of(self, text: str) -> str:
        """The id of the job that this token opens. Raises UnauthorizedError."""
        found = _TOKEN.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if found is None:
            raise UnauthorizedError("This is no token of this service.")
        said, signature = found.groups()
        signed = False
        for key in self.keys:  # all of them: the time taken tells nothing
            signed |= hmac.compare_digest(_signature(key, said), signature)
        members = _decode(said) if signed else {}
        if members.get("dep") != self._deployment_id:
            raise UnauthorizedError("This is no token of this service.")
        if members["exp"] <= self._clock():
            raise UnauthorizedError("The token has expired. POST /jobs/{id}/token makes a new one.")
        return members["job"]


def signing_keys(settings: ServiceSettings) -> list[bytes]:
    """What tokens are signed with: ``PIPESERVE_TOKEN_SECRET``, else the service's keys, else nothing that lasts.

    Raises ConfigurationError for a secret that names none.
    """
    if settings.token_secret is not None:
        named = several(settings.token_secret, "PIPESERVE_TOKEN_SECRET")
    elif settings.auth_key is not None:
        named = several(settings.auth_key, "ZENML_SERVING_AUTH_KEY")
    else:  # nothing is checked then; and a key that is set later must not take what was signed before
        named = [secrets.token_hex(32)]
    return [hmac.digest(name.encode(), _PURPOSE, hashlib.sha256) for name in named]


def several(setting: SecretStr, variable: str) -> list[str]:
    """The secrets in a setting, which has commas between them. Raises ConfigurationError for none."""
    named = [part.strip() for part in setting.get_secret_value().split(",") if part.strip()]
    if not named:
        raise ConfigurationError(f"wrong setting: {variable}: it names none; unset it to need none")
    return named


def _signature(key: bytes, said: str) -> str:
    return _encode(hmac.digest(key, said.encode(), "sha256"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(said: str) -> dict[str, Any]:
    try:
        members = orjson.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))
    except (binascii.Error, orjson.JSONDecodeError):  # signed, so by somebody who shares the secret
        return {}
    return cast(dict[str, Any], members) if isinstance(members, dict) else {}
