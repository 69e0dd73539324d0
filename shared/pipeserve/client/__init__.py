"""Calls a pipeserve service: the same interface twice, blocking and async, over one protocol core."""

from pipeserve.client.async_client import AsyncClient
from pipeserve.client.async_job import AsyncJob
from pipeserve.client.client import Client
from pipeserve.client.errors import ClientError, UnexpectedOutputsError, UnexpectedReplyError, UnreachableError
from pipeserve.client.job import Job
from pipeserve.client.log_line import LogLine
from pipeserve.client.result import Result
from pipeserve.client.visualization import Visualization

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ClientError",
    "Job",
    "LogLine",
    "Result",
    "UnexpectedOutputsError",
    "UnexpectedReplyError",
    "UnreachableError",
    "Visualization",
]
