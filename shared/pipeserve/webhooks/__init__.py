"""Sends jobs' events to receivers over HTTP, signed as Standard Webhooks 1.0, and checks the signature for receivers.

Importing this loads no HTTP client: the sender does (:mod:`pipeserve.webhooks.dispatcher`).
"""

from pipeserve.webhooks.receivers import Receivers, check_url
from pipeserve.webhooks.selection import DEFAULT_EVENTS, EVENT_TYPES
from pipeserve.webhooks.signature import SignatureError, Signer, verify

__all__ = [
    "DEFAULT_EVENTS",
    "EVENT_TYPES",
    "Receivers",
    "SignatureError",
    "Signer",
    "check_url",
    "verify",
]
