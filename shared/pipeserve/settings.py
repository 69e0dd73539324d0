"""Configuration: one frozen model per concern, read from the environment at the composition roots only.

Everything below a composition root takes one of these models (or single values), never the environment. A wrong
value is refused with the name of its variable.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeserve.errors import ConfigurationError

LogFormat = Literal["auto", "console", "keyvalue", "json"]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    @classmethod
    def from_environment(cls, **overrides: object) -> Self:
        """Read the environment; ``overrides`` (by field name; None is no override) win. Raises ConfigurationError."""
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            lines = [f"{cls._variable(str(item['loc'][0]))}: {item['msg']}" for item in error.errors()]
            raise ConfigurationError("wrong setting: " + "; ".join(lines)) from None

    @classmethod
    def _variable(cls, place: str) -> str:
        """The variable of a field that pydantic names, which it does by field name for a value that was passed in."""
        field = cls.model_fields.get(place)
        return str(field.alias) if field is not None else place


class StoreSettings(_Settings):
    """Where jobs, their logs and deployments live, and for how long."""

    redis_url: str | None = Field(
        None,
        alias="PIPESERVE_REDIS_URL",
        description="Redis or Valkey by URL. Unset: an embedded Valkey under the data dir.",
    )
    data_dir: Path = Field(
        Path(".pipeserve"),
        alias="PIPESERVE_DATA_DIR",
        description="The embedded store's files: socket, append-only file, log.",
    )
    result_ttl: int = Field(
        86_400, gt=0, alias="PIPESERVE_RESULT_TTL", description="Seconds for which a finished job and its log are kept."
    )
    lease_seconds: float = Field(
        10.0,
        gt=0.5,
        alias="PIPESERVE_LEASE_SECONDS",
        description="A job whose owner is silent for so long is taken back.",
    )
    event_log_max: int = Field(
        10_000,
        gt=0,
        alias="PIPESERVE_EVENT_LOG_MAX",
        description="About how many events of a job are kept; older ones are a gap.",
    )
    max_queue_size: int = Field(
        10_000,
        gt=0,
        alias="ZENML_SERVING_MAX_QUEUE_SIZE",
        description="Jobs that may wait; the next one is 429 queue_full.",
    )
    durability: Literal["standard", "strict"] = Field(
        "standard",
        alias="PIPESERVE_DURABILITY",
        description="strict: a job is accepted once it is on disk, or on a replica; standard: once the store has it.",
    )


class RuntimeSettings(_Settings):
    """How runs execute in one process."""

    max_concurrency: int = Field(
        64,
        gt=0,
        alias="ZENML_SERVING_MAX_CONCURRENCY",
        description="Synchronous runs at once in one API process; more is 503.",
    )
    request_timeout: float = Field(
        300.0,
        gt=0,
        alias="ZENML_SERVING_REQUEST_TIMEOUT",
        description="Seconds that a run may take unless its request says.",
    )
    timeout_grace: float = Field(
        1.0,
        ge=0,
        alias="PIPESERVE_TIMEOUT_GRACE",
        description="Seconds that a thread past its timeout has to reach a checkpoint before it is abandoned.",
    )
    max_attempts: int = Field(
        3,
        gt=0,
        alias="PIPESERVE_MAX_ATTEMPTS",
        description="Attempts that may be lost to crashes before a job is worker_lost.",
    )
    expose_tracebacks: bool = Field(
        False, alias="PIPESERVE_EXPOSE_TRACEBACKS", description="Let a failed step's traceback go to the caller."
    )
    cache_ttl: float = Field(
        60.0,
        gt=0,
        alias="ZENML_RT_CACHE_TTL_SECONDS",
        description="Seconds for which a cached step result is used, unless its step says.",
    )
    cache_max_entries: int = Field(
        256, ge=0, alias="ZENML_RT_CACHE_MAX_ENTRIES", description="Step results that one process keeps; 0: none."
    )
    cache_max_bytes: int = Field(
        67_108_864,
        ge=0,
        alias="PIPESERVE_CACHE_MAX_BYTES",
        description="About how many bytes of step results one process keeps.",
    )
    step_processes: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        gt=0,
        alias="PIPESERVE_STEP_PROCESSES",
        description='Steps with executor="process" that run at once in one process; default: CPUs.',
    )
    inline_limit: int = Field(
        65_536,
        ge=0,
        alias="PIPESERVE_INLINE_LIMIT",
        description="Bytes up to which a value is kept in the job's record; a larger one is an artifact.",
    )
    log_limit: int = Field(
        1_048_576, ge=0, alias="PIPESERVE_LOG_LIMIT", description="Bytes of one run's logs that are kept."
    )
    event_buffer: int = Field(
        67_108_864,
        gt=0,
        alias="PIPESERVE_EVENT_BUFFER",
        description="About how many bytes of events one process holds for a store that is away.",
    )
    error_report_interval: float = Field(
        15.0,
        gt=0,
        alias="ZENML_RT_ERR_REPORT_INTERVAL",
        description="Seconds between two reports that recording in the background is in trouble.",
    )
    breaker_error_threshold: float = Field(
        0.1,
        gt=0,
        le=1,
        alias="ZENML_RT_CB_ERR_THRESHOLD",
        description="The part of recent background writes that must fail for the breaker to open.",
    )
    breaker_min_events: int = Field(
        100,
        gt=0,
        alias="ZENML_RT_CB_MIN_EVENTS",
        description="Recent background writes before the breaker judges.",
    )
    breaker_open_seconds: float = Field(
        300.0,
        gt=0,
        alias="ZENML_RT_CB_OPEN_SECONDS",
        description="Seconds for which an open breaker holds writes back before it tries one.",
    )


class ArtifactSettings(_Settings):
    """Where values go that are too large for a job's record."""

    url: str | None = Field(
        None,
        alias="PIPESERVE_ARTIFACTS_URL",
        description="A folder or bucket as fsspec names it (file:///…, s3://…). Unset: artifacts in the data dir.",
    )

    def root(self, data_dir: Path) -> str:
        """The folder or bucket to use, for a service whose data dir is ``data_dir``."""
        return str(data_dir.absolute() / "artifacts") if self.url is None else self.url


def is_loopback(host: str) -> bool:
    """Whether no other machine can reach what listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or every address: "", "*"
        return False


class ServiceSettings(_Settings):
    """The HTTP front end."""

    host: str = Field("127.0.0.1", alias="ZENML_SERVICE_HOST", description="Address to listen on.")
    port: int = Field(8001, ge=0, le=65_535, alias="ZENML_SERVICE_PORT", description="Port to listen on.")
    workers: int = Field(1, gt=0, alias="ZENML_SERVICE_WORKERS", description="API processes on this port.")
    auth_key: SecretStr | None = Field(
        None,
        alias="ZENML_SERVING_AUTH_KEY",
        description="Once set, every route but /health* needs it; or one of several, commas between.",
    )
    keys_file: Path | None = Field(
        None,
        alias="PIPESERVE_KEYS_FILE",
        description="A TOML file of keys with names and scopes, by digest; read again when it changes.",
    )
    require_auth: bool = Field(
        False,
        alias="PIPESERVE_REQUIRE_AUTH",
        description="Refuse to start without keys.",
    )
    token_secret: SecretStr | None = Field(
        None,
        alias="PIPESERVE_TOKEN_SECRET",
        description="Signs tokens of jobs: the first of several signs, all are taken. Unset: the service's keys do.",
    )
    token_ttl: float = Field(
        3600.0,
        ge=1,
        le=604_800,
        alias="PIPESERVE_TOKEN_TTL",
        description="Seconds for which a token of a job is good unless its request says.",
    )
    requests_per_minute: int | None = Field(
        None,
        gt=0,
        alias="PIPESERVE_REQUESTS_PER_MINUTE",
        description="Requests that each caller may send in a minute, unless its key says; unset: any number.",
    )
    runs_per_day: int | None = Field(
        None,
        gt=0,
        alias="PIPESERVE_RUNS_PER_DAY",
        description="Runs that each caller may start in a day, unless its key says; unset: any number.",
    )
    allowed_origins: str = Field(
        "",
        alias="PIPESERVE_ALLOWED_ORIGINS",
        description="Origins of web pages that may use the service, with commas between; * for all.",
    )
    max_body: int = Field(
        1_048_576, gt=0, alias="PIPESERVE_MAX_BODY", description="Bytes that a request's body may have."
    )
    access_log: bool = Field(
        False,
        alias="PIPESERVE_ACCESS_LOG",
        description="Write a line for each request, with an id that its answer has too.",
    )
    sync_wait: float = Field(
        60.0, gt=0, alias="PIPESERVE_SYNC_WAIT", description="Seconds after which a synchronous call turns into a 202."
    )
    sync_execution: Literal["inline", "queued"] = Field(
        "inline",
        alias="PIPESERVE_SYNC_EXECUTION",
        description="Run synchronous calls in the API process, or on the workers.",
    )

    @property
    def listens_on_loopback(self) -> bool:
        """Whether no other machine can reach it."""
        return is_loopback(self.host)

    @property
    def open_to_its_machine(self) -> bool:
        """Whether whatever runs on this machine may call it without a key, and nothing else may."""
        return self.listens_on_loopback and not self.needs_key

    @property
    def limits_callers(self) -> bool:
        """Whether a caller may have a limit of requests."""
        return self.requests_per_minute is not None or self.keys_file is not None

    @property
    def needs_key(self) -> bool:
        """Whether callers have to present one."""
        return self.auth_key is not None or self.keys_file is not None


class WebhookSettings(_Settings):
    """How jobs' events are sent to receivers."""

    secret: SecretStr | None = Field(
        None,
        alias="PIPESERVE_WEBHOOK_SECRET",
        description="Signs webhooks (whsec_…; several, with spaces between, while one is replaced). Unset: refused.",
    )
    allow: str = Field(
        "",
        alias="PIPESERVE_WEBHOOK_ALLOW",
        description="Private receivers that are allowed: host names and networks with commas between, or *.",
    )
    timeout: float = Field(
        15.0, gt=0, alias="PIPESERVE_WEBHOOK_TIMEOUT", description="Seconds that a receiver has to answer."
    )
    attempts: int = Field(
        10, gt=0, alias="PIPESERVE_WEBHOOK_ATTEMPTS", description="Tries at one event before its webhook has failed."
    )


class WorkerSettings(_Settings):
    """The processes that run queued jobs."""

    processes: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 4),
        gt=0,
        alias="PIPESERVE_WORKER_PROCESSES",
        description="Worker processes under one supervisor.",
    )
    concurrency: int = Field(
        10, gt=0, alias="PIPESERVE_WORKER_CONCURRENCY", description="Jobs at once in one worker process."
    )
    drain_seconds: float = Field(
        30.0, ge=0, alias="PIPESERVE_DRAIN_SECONDS", description="Seconds that running jobs have to end after SIGTERM."
    )
    max_jobs_per_child: int | None = Field(
        None,
        gt=0,
        alias="PIPESERVE_MAX_JOBS_PER_CHILD",
        description="Jobs after which a worker process is replaced; unset: never.",
    )
    max_rss: ByteSize | None = Field(
        None,
        gt=0,
        alias="PIPESERVE_MAX_RSS",
        description="Memory over which a worker process is replaced, such as 2GiB; unset: never.",
    )


class DeploymentSettings(_Settings):
    """Which deployment a process serves."""

    deployment_id: str | None = Field(
        None,
        alias="ZENML_PIPELINE_DEPLOYMENT_ID",
        description="A deployment's UUID, or a name for its newest deployment.",
    )

    def required(self) -> str:
        """The id, or ConfigurationError with the command that makes one."""
        if self.deployment_id is None:
            raise ConfigurationError(
                "ZENML_PIPELINE_DEPLOYMENT_ID is not set. Make a deployment and pass its id:\n"
                "    export ZENML_PIPELINE_DEPLOYMENT_ID=$(pipeserve deploy package.module:pipeline)"
            )
        return self.deployment_id


class LogSettings(_Settings):
    """What a process writes to its own log."""

    level: str = Field("info", alias="ZENML_LOG_LEVEL", description="debug, info, warning, error or critical.")
    format: LogFormat = Field(
        "auto",
        alias="PIPESERVE_LOG_FORMAT",
        description="console, keyvalue or json; auto: console on a terminal, keyvalue elsewhere.",
    )


class TracingSettings(_Settings):
    """Whether a process tells of traces. All else that OpenTelemetry's variables say is read by its own SDK."""

    endpoint: str | None = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where traces go, by OTLP over HTTP: http://collector:4318. Unset: nowhere.",
    )
    traces_endpoint: str | None = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        description="The same as the whole URL, where traces go elsewhere than other signals.",
    )
    exporter: str | None = Field(
        None,
        alias="OTEL_TRACES_EXPORTER",
        description="otlp, console, none or another exporter that is installed; unset: otlp, if it has an endpoint.",
    )
    service_name: str | None = Field(
        None,
        alias="OTEL_SERVICE_NAME",
        description="What traces call this service. Unset: pipeserve-api, or pipeserve-worker.",
    )
    disabled: bool = Field(False, alias="OTEL_SDK_DISABLED", description="true: no traces, whatever else is set.")

    @property
    def exporters(self) -> tuple[str, ...]:
        """The names of the exporters to use; none: tracing is off."""
        if self.disabled:
            return ()
        if self.exporter is None:
            return ("otlp",) if self.endpoint or self.traces_endpoint else ()
        names = dict.fromkeys(name.strip() for name in self.exporter.split(","))
        return tuple(name for name in names if name not in ("", "none"))

    @property
    def asked_by(self) -> str:
        """The variable that asks for traces."""
        if self.exporter is not None:
            return "OTEL_TRACES_EXPORTER"
        return "OTEL_EXPORTER_OTLP_ENDPOINT" if self.endpoint else "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
