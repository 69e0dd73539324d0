"""Whether strangers can call the service: it listens where others reach it, and asks nobody for a key."""

from __future__ import annotations

import logging

from pipeserve.errors import ConfigurationError
from pipeserve.settings import ServiceSettings

_log = logging.getLogger(__name__)


def exposure(settings: ServiceSettings) -> str | None:
    """In a sentence, why strangers may call; None: they can't."""
    if settings.needs_key or settings.listens_on_loopback:
        return None
    return (
        f"No key is set, and the service listens on {settings.host}: whoever reaches this port can run the pipeline "
        "and read every job. Set PIPESERVE_KEYS_FILE or ZENML_SERVING_AUTH_KEY, or let nobody else reach the port."
    )


def check_exposure(settings: ServiceSettings) -> None:
    """Say it loudly, once, at the start; and what is missing besides keys.

    Raises ConfigurationError where keys are required and there are none.
    """
    if settings.require_auth and not settings.needs_key:
        raise ConfigurationError(
            "PIPESERVE_REQUIRE_AUTH is set and there is no key. Make one:\n"
            "    pipeserve keys new NAME --file keys.toml && export PIPESERVE_KEYS_FILE=$PWD/keys.toml"
        )
    if settings.needs_key and settings.auth_key is None and settings.token_secret is None:
        _log.warning(
            "PIPESERVE_TOKEN_SECRET is not set: each API process signs tokens of jobs with its own secret, so they "
            "are good there only, and until it ends"
        )
    said = exposure(settings)
    if said is not None:
        _log.warning("OPEN TO STRANGERS. %s", said)
