"""All that an API process is told, read once at its composition root."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from pipeserve.settings import (
    ArtifactSettings,
    DeploymentSettings,
    LogSettings,
    RuntimeSettings,
    ServiceSettings,
    StoreSettings,
    TracingSettings,
    WebhookSettings,
    WorkerSettings,
)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The concerns of one API process."""

    service: ServiceSettings = field(default_factory=ServiceSettings.from_environment)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings.from_environment)
    store: StoreSettings = field(default_factory=StoreSettings.from_environment)
    deployment: DeploymentSettings = field(default_factory=DeploymentSettings.from_environment)
    log: LogSettings = field(default_factory=LogSettings.from_environment)
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings.from_environment)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings.from_environment)
    tracing: TracingSettings = field(default_factory=TracingSettings.from_environment)
    drain_seconds: float = field(default_factory=lambda: WorkerSettings.from_environment().drain_seconds)
    """Seconds that running synchronous calls have to end after SIGTERM."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment. Raises ConfigurationError."""
        return cls()

    def masked(self) -> dict[str, Any]:
        """Every setting by the name of its variable, without secrets."""
        models: list[BaseModel] = [
            self.service,
            self.runtime,
            self.store,
            self.deployment,
            self.log,
            self.artifacts,
            self.webhooks,
            self.tracing,
        ]
        shown: dict[str, Any] = {}
        for model in models:
            shown |= model.model_dump(mode="json", by_alias=True)
        if self.service.auth_key is not None:
            shown["ZENML_SERVING_AUTH_KEY"] = MASK
        if self.service.token_secret is not None:
            shown["PIPESERVE_TOKEN_SECRET"] = MASK
        if self.webhooks.secret is not None:
            shown["PIPESERVE_WEBHOOK_SECRET"] = MASK
        if self.store.redis_url is not None:
            shown["PIPESERVE_REDIS_URL"] = masked_url(self.store.redis_url)
        if self.artifacts.url is not None:
            shown["PIPESERVE_ARTIFACTS_URL"] = masked_url(self.artifacts.url)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            if shown[name] is not None:
                shown[name] = masked_url(shown[name])
        shown["PIPESERVE_DRAIN_SECONDS"] = self.drain_seconds
        return shown


MASK = "**********"
_QUERY_PASSWORD = re.compile(r"(?<=password=)[^&#]*")


def masked_url(url: str) -> str:
    """``url`` with its user's name and password hidden, and the passwords in its query."""
    url = _QUERY_PASSWORD.sub(MASK, url)
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=f"{MASK}@{parts.netloc.rpartition('@')[2]}"))
