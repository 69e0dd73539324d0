"""Which receivers may be sent to: public addresses, and the private ones that the operator allows.

Whoever may submit a job names a URL that this service then calls from inside its network. So the address counts that
is really connected to, not the name: :meth:`Receivers.check_addresses` is asked between the look-up of a name and the
connection. :func:`check_url` refuses at submit what is wrong whatever the look-up gives.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from pipeserve.errors import ConfigurationError, PipeserveError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")

# IANA's registries of special-purpose addresses. Not ``is_global``: what that knows differs between patch releases.
_PRIVATE_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services inside each virtual network, metadata among them
        "169.254.0.0/16",  # link-local, with the clouds' metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_PRIVATE_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")


class ReceiverRefusedError(PipeserveError):
    """The receiver's address is private and not allowed. The message does not show the address to who asked for it."""


@dataclass(frozen=True, slots=True)
class Receivers:
    """Who may be sent to besides public addresses."""

    everyone: bool = False
    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, allow: str) -> Self:
        """From host names (``hooks.internal``, ``*.internal``), networks and addresses with commas between, or ``*``.

        Raises ConfigurationError.
        """
        entries = [entry.strip().lower() for entry in allow.split(",") if entry.strip()]
        names: set[str] = set()
        suffixes: list[str] = []
        networks: list[Network] = []
        for entry in entries:
            if entry == "*":
                continue
            network = _network(entry)
            if network is not None:
                networks.append(network)
            elif _HOST_NAME.fullmatch(entry.removeprefix("*.")) is None:
                raise ConfigurationError(
                    f"wrong setting: PIPESERVE_WEBHOOK_ALLOW: {entry!r} is no host name, network or address"
                )
            elif entry.startswith("*."):
                suffixes.append(entry[1:].rstrip("."))
            else:
                names.add(entry.rstrip("."))
        return cls("*" in entries, frozenset(names), tuple(suffixes), tuple(networks))

    def allows_host(self, host: str) -> bool:
        """Whether this host may be sent to wherever it is."""
        name = host.lower().rstrip(".")
        return self.everyone or name in self.names or name.endswith(self.suffixes)

    def allows(self, host: str, address: Address) -> bool:
        """Whether ``host`` may be sent to at this address."""
        real = _unwrapped(address)
        return self.allows_host(host) or is_public(real) or any(real in network for network in self.networks)

    def check_addresses(self, host: str, addresses: Sequence[Address]) -> None:
        """Raise ReceiverRefusedError unless all of the host's addresses are allowed.

        All, because one that is refused shows that the name is used to reach inside.
        """
        if not all(self.allows(host, address) for address in addresses):
            raise ReceiverRefusedError(f"{host} has a private address, and PIPESERVE_WEBHOOK_ALLOW does not name it")


def check_url(url: str, allow: str = "") -> None:
    """Raise ValueError, in words for the caller, unless ``url`` could be a receiver's.

    ``allow`` is ``PIPESERVE_WEBHOOK_ALLOW``. Nothing is looked up: a host name is judged when it is connected to.
    """
    import httpx  # here: who checks a signature needs no HTTP client. The same parser as the sender's.

    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"the URL is longer than {MAX_URL_LENGTH} characters")
    try:
        parts = httpx.URL(url)
        host = parts.raw_host.decode("ascii").strip("[]").lower()
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"the URL can't be read: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("the URL must begin with http:// or https://")
    if parts.userinfo:
        raise ValueError("the URL must have no user name or password: receivers check the signature")
    if not host:
        raise ValueError("the URL names no host")
    literal = _literal(host)
    if literal is None and _HOST_NAME.fullmatch(host) is None:
        raise ValueError(f"{host} is no host name")
    if parts.port is not None and not 0 < parts.port < 65_536:
        raise ValueError(f"{parts.port} is no port")
    receivers = Receivers.parse(allow)
    # The names that mean this machine by themselves (RFC 6761) need no look-up either.
    local = f".{host}".rstrip(".").endswith(".localhost")
    if (local and not receivers.allows_host(host)) or (literal is not None and not receivers.allows(host, literal)):
        raise ValueError(f"{host} is a private address, and this service does not allow it")


def is_public(address: Address) -> bool:
    """Whether ``address`` is one that the whole internet can reach."""
    real = _unwrapped(address)
    if isinstance(real, IPv4Address):
        return not _within(real, _PRIVATE_V4)
    return real in _PUBLIC_V6 and not _within(real, _PRIVATE_V6)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: mapped, or reached through NAT64 or 6to4."""
    if isinstance(address, IPv6Address):
        number = int(address)
        if address in _MAPPED or address in _NAT64:
            return IPv4Address(number & 0xFFFF_FFFF)
        if address in _6TO4:
            return IPv4Address((number >> 80) & 0xFFFF_FFFF)
    return address


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _literal(host: str) -> Address | None:
    """The address that ``host`` is already; also as C libraries read it: ``127.1``, ``0x7f000001``."""
    host = host.removesuffix(".")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
