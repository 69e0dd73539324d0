"""Calls a pipeserve service: the same interface twice, blocking and async, over one protocol core."""

from pipeserve.client.async_client import AsyncClient, AsyncJob
from pipeserve.client.client import Client, Job
from pipeserve.client.errors import ClientError, UnexpectedReplyError, UnreachableError
from pipeserve.client.result import Result

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ClientError",
    "Job",
    "Result",
    "UnexpectedReplyError",
    "UnreachableError",
]
