"""The job service: processes that run queued jobs of one deployment.

Start it with ``python -m pipeserve_worker`` (or ``pipeserve worker``). A supervisor starts the worker processes and
gives a dead one's jobs back at once; each worker process is an :class:`~pipeserve_worker.worker.JobWorker`, arq's
``Worker`` with wake-ups, batch claims and leases.
"""
