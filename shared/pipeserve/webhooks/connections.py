"""Connects to a receiver's checked address.

A name is looked up once; the addresses that were checked are those that are connected to. A second look-up, as by a
guard in front of an HTTP client, could give others (DNS rebinding). TLS and the ``Host`` header go by the name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import cast

import httpcore

from pipeserve.webhooks.receivers import Address, Receivers

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a host and port, the best first. Raises OSError."""

_MAX_TRIED = 3  # of one host's addresses; each gets its part of the time

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


async def resolve(host: str, port: int) -> Sequence[Address]:
    """As the operating system does."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(target[0]) for *_, target in found]


class CheckedConnections(httpcore.AsyncNetworkBackend):
    """Opens connections for an HTTP client, to allowed addresses only."""

    def __init__(self, receivers: Receivers, look_up: Resolve = resolve) -> None:
        self._receivers = receivers
        self._look_up = look_up
        # To pyright it is what stands in where anyio is not installed; httpx needs anyio.
        self._inner = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first of the host's addresses that answers.

        Raises ReceiverRefusedError if one of them is not allowed; httpcore.ConnectError or httpcore.ConnectTimeout.
        """
        try:
            addresses = list(dict.fromkeys(await self._look_up(host, port)))
        except (OSError, ValueError) as error:  # ValueError: a name that IDNA can't encode
            raise httpcore.ConnectError(f"{host} is unknown") from error
        self._receivers.check_addresses(host, addresses)
        failure: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError(f"{host} has no address")
        tried = addresses[:_MAX_TRIED]
        for address in tried:
            try:
                return await self._inner.connect_tcp(
                    str(address),
                    port,
                    timeout=None if timeout is None else timeout / len(tried),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """As the client asks between tries to connect."""
        await asyncio.sleep(seconds)
