"""Signing what is sent, and checking it where it arrives: Standard Webhooks 1.0, symmetric (``v1``).

The signature is HMAC-SHA256 over ``<webhook-id>.<webhook-timestamp>.<body>``. While a secret is replaced a sender has
two, and sends a signature of each; a receiver that knows either accepts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pipeserve.errors import ConfigurationError, PipeserveError

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

_PREFIX = "whsec_"
_VERSION = "v1,"
_MIN_BYTES = 24
_MAX_BYTES = 64  # both bounds are the standard's
_MAX_DIGITS = 12  # of a timestamp: thirty thousand years; Python refuses to read thousands


class SignatureError(PipeserveError):
    """What arrived was not signed with this secret, or is too old. The message says which; believe nothing in it."""


class Signer:
    """Signs with one or more secrets."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def from_secrets(cls, text: str) -> Self:
        """From secrets with spaces between, each ``whsec_`` and base64, or base64 alone. Raises ConfigurationError."""
        try:
            return cls(_keys(text))
        except ValueError as error:
            raise ConfigurationError(f"wrong setting: PIPESERVE_WEBHOOK_SECRET: {error}") from None

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The three headers of a message that is sent at ``timestamp`` (Unix time in seconds)."""
        signatures = [_VERSION + _signature(key, message_id, str(timestamp), body) for key in self._keys]
        return {ID_HEADER: message_id, TIMESTAMP_HEADER: str(timestamp), SIGNATURE_HEADER: " ".join(signatures)}


def verify(headers: Mapping[str, str], body: bytes, secret: str, tolerance: float = 300) -> dict[str, Any]:
    """For receivers: the message in ``body``, if it was signed with ``secret`` (or one of several, spaces between).

    ``body`` is the request's body byte for byte; ``headers`` are the request's, in any case. A message signed more than
    ``tolerance`` seconds ago, or ahead, is refused: it could be an old one, sent again by somebody else.

    Raises SignatureError; ValueError for a ``secret`` that is none.
    """
    keys = _keys(secret)
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (given[h] for h in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
    except KeyError as missing:
        raise SignatureError(f"the request has no header {missing.args[0]}") from None
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _MAX_DIGITS):
        raise SignatureError(f"{TIMESTAMP_HEADER} is not a time in whole seconds")
    if abs(time.time() - int(timestamp)) > tolerance:
        raise SignatureError(
            f"{TIMESTAMP_HEADER} is more than {tolerance:g} s from now: an old message, or a wrong clock"
        )
    sent = [part.removeprefix(_VERSION) for part in signatures.split() if part.startswith(_VERSION)]
    expected = [_signature(key, message_id, timestamp, body) for key in keys]
    if not any(hmac.compare_digest(_encoded(ours), _encoded(theirs)) for ours in expected for theirs in sent):
        raise SignatureError("no signature is of this secret and this body")
    return json.loads(body)


def _signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    signed = _encoded(f"{message_id}.{timestamp}.") + body
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _encoded(text: str) -> bytes:
    """As UTF-8. What some servers make of bytes that are none must not raise; nothing that was signed has such."""
    return text.encode(errors="backslashreplace")


def _keys(text: str) -> list[bytes]:
    """The keys of these secrets; ValueError in words that do not show them."""
    secrets = text.split()
    if not secrets:
        raise ValueError("no secret is given")
    return [_key(secret) for secret in secrets]


def _key(secret: str) -> bytes:
    encoded = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"a secret is {_PREFIX} and base64") from None
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(f"a secret has {_MIN_BYTES} to {_MAX_BYTES} bytes, not {len(key)}")
    return key
