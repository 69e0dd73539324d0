"""``python -m pipeserve_worker``: a supervisor with its worker processes; with ``--child``, one of those."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pipeserve.errors import ConfigurationError
from pipeserve_worker.options import ChildOptions, Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job service; the exit code: 0 drained, 1 broken, 2 wrong configuration."""
    given = _parser().parse_args(arguments)
    try:
        options = Options.read(
            processes=given.processes,
            concurrency=given.concurrency,
            max_jobs_per_child=given.max_jobs_per_child,
            max_rss=given.max_rss,
            deployment_id=given.deployment_id,
        )
        options.deployment.required()
        if given.child is not None:
            from pipeserve_worker.child import run_child

            return run_child(options, ChildOptions(given.child, given.parent_pid, given.report_fd))
        from pipeserve_worker.supervisor import run_supervisor

        return run_supervisor(options)
    except ConfigurationError as error:
        sys.stderr.write(f"pipeserve worker: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeserve worker", description="Run queued jobs of one deployment in worker processes."
    )
    parser.add_argument("--processes", type=int, help="worker processes (PIPESERVE_WORKER_PROCESSES)")
    parser.add_argument("--concurrency", type=int, help="jobs at once in each (PIPESERVE_WORKER_CONCURRENCY)")
    parser.add_argument(
        "--max-jobs-per-child", type=int, help="jobs after which one is replaced (PIPESERVE_MAX_JOBS_PER_CHILD)"
    )
    parser.add_argument("--max-rss", help="memory above which one is replaced, such as 2GiB (PIPESERVE_MAX_RSS)")
    parser.add_argument(
        "--deployment", dest="deployment_id", help="its UUID, or its name (ZENML_PIPELINE_DEPLOYMENT_ID)"
    )
    internal = parser.add_argument_group("of a worker process (the supervisor sets these)")
    internal.add_argument("--child", metavar="NONCE", help="be one worker process")
    internal.add_argument("--parent-pid", type=int, default=os.getppid(), help="end when this process does")
    internal.add_argument("--report-fd", type=int, help="where to tell how it fares")
    return parser


if __name__ == "__main__":
    sys.exit(main())
