"""What a worker's command line and environment say, as one value that a supervisor can hand to its children."""

from __future__ import annotations

from dataclasses import dataclass

from pipeserve.settings import (
    ArtifactSettings,
    DeploymentSettings,
    LogSettings,
    RuntimeSettings,
    StoreSettings,
    TracingSettings,
    WorkerSettings,
)


@dataclass(frozen=True, slots=True)
class Options:
    """The configuration of a supervisor or of a child."""

    store: StoreSettings
    runtime: RuntimeSettings
    worker: WorkerSettings
    deployment: DeploymentSettings
    log: LogSettings
    artifacts: ArtifactSettings
    tracing: TracingSettings

    @classmethod
    def read(
        cls,
        *,
        processes: int | None = None,
        concurrency: int | None = None,
        max_jobs_per_child: int | None = None,
        max_rss: str | None = None,
        deployment_id: str | None = None,
    ) -> Options:
        """From the environment; what is given wins. Raises ConfigurationError."""
        return cls(
            store=StoreSettings.from_environment(),
            runtime=RuntimeSettings.from_environment(),
            worker=WorkerSettings.from_environment(
                processes=processes,
                concurrency=concurrency,
                max_jobs_per_child=max_jobs_per_child,
                max_rss=max_rss,
            ),
            deployment=DeploymentSettings.from_environment(deployment_id=deployment_id),
            log=LogSettings.from_environment(),
            artifacts=ArtifactSettings.from_environment(),
            tracing=TracingSettings.from_environment(),
        )

    def for_children(self) -> dict[str, str]:
        """What a supervisor's command line says of its children, as their environment."""
        values = {
            "PIPESERVE_WORKER_CONCURRENCY": self.worker.concurrency,
            "PIPESERVE_MAX_JOBS_PER_CHILD": self.worker.max_jobs_per_child,
            "PIPESERVE_MAX_RSS": None if self.worker.max_rss is None else int(self.worker.max_rss),
        }
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """What only the supervisor knows of a child."""

    nonce: str
    """The random part of its owner token."""
    parent_pid: int
    report_fd: int | None = None
    """Where it writes why it can't start, so that the supervisor says it once for all children."""
