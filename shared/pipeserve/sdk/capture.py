"""What is kept of a run. Observability only: no switch ever changes what flows between steps."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipeserve.errors import DefinitionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What pipeserve keeps of a deployment and of its runs.

    - ``memory_only``: in serving, a sync call touches nothing outside the process; an async job keeps only its
      ledger entry (state, result, error, terminal event). Outside serving it is ignored, with a warning.
    - ``code``: source and docstrings of the pipeline and its steps, in the deployment.
    - ``logs``: what steps log or print, as ``log`` events.
    - ``metadata``: parameters, step timings, cache receipts and ``log_metadata(...)``, with the job.
    - ``visualizations``: what steps show, with the job.
    - ``metrics``: latencies and counters of steps.
    """

    memory_only: bool = False
    code: bool = True
    logs: bool = True
    metadata: bool = True
    visualizations: bool = True
    metrics: bool = True

    def __post_init__(self) -> None:
        for option in fields(self):
            value: object = getattr(self, option.name)
            if not isinstance(value, bool):
                raise DefinitionError(f"Capture({option.name}=…) must be True or False, not {value!r}")

    def as_dict(self) -> dict[str, bool]:
        """The switches by name."""
        return {option.name: getattr(self, option.name) for option in fields(self)}
