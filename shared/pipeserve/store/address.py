"""Reading the store's address, and showing it without its secrets.

::

    redis://[user:password@]host[:port][/db]                  rediss:// with TLS
    unix:///path/to/socket[?db=N]
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/master_name
        [?db=N&sentinel_username=…&sentinel_password=…]       rediss+sentinel:// with TLS, to the sentinels too

User and password are the server's; those of the sentinels stand in the query. Messages name no part of the address:
a password with an unescaped ``/`` or ``#`` turns up as host, port or path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pipeserve.errors import ConfigurationError

PORT = 6379
SENTINEL_PORT = 26379
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")

_SENTINEL_QUERY = {"db", "sentinel_username", "sentinel_password"}
_SECRET = re.compile(r"(?<=password=)[^&]*")
_ESCAPE = "characters such as / ? # @ in a password must be percent-encoded"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is, and how to log in there."""

    hosts: tuple[tuple[str, int], ...] = ()
    """The server, or the sentinels that know it. Empty: a unix socket."""
    unix_socket: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    master_name: str | None = None
    """What the sentinels call the primary; None: there are no sentinels."""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ConfigurationError."""
        try:
            parts = urlsplit(url)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            if parts.scheme not in SCHEMES:
                raise _wrong(f"unknown scheme; use {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
            if parts.scheme == "unix":
                return cls(
                    unix_socket=unquote(parts.path),
                    database=int(query.get("db", "0")),
                    username=_unquoted(parts.username),
                    password=_unquoted(parts.password),
                )
            if parts.scheme.endswith("+sentinel"):
                return cls._of_sentinels(parts, query)
            if "," in parts.netloc.rpartition("@")[2]:
                raise _wrong("several hosts are the sentinels of redis+sentinel://host,host/master_name")
            return cls(
                hosts=((parts.hostname or "localhost", parts.port or PORT),),
                database=int(query.get("db", parts.path.lstrip("/") or "0")),
                username=_unquoted(parts.username),
                password=_unquoted(parts.password),
                tls=parts.scheme == "rediss",
            )
        except ValueError:  # of int() and of urllib's port; its words show what it has read
            raise _wrong(f"the port or the database is no number, or a bracket is missing; {_ESCAPE}") from None

    @classmethod
    def _of_sentinels(cls, parts: SplitResult, query: dict[str, str]) -> Self:
        user, _, hosts = parts.netloc.rpartition("@")
        username, _, password = user.partition(":")
        sentinels = [urlsplit(f"//{host}") for host in hosts.split(",")]
        if not all(sentinel.hostname for sentinel in sentinels):
            raise _wrong("name at least one sentinel: redis+sentinel://host:26379/master_name")
        master_name = unquote(parts.path.strip("/"))
        if not master_name or "/" in master_name:
            raise _wrong(
                "after the sentinels comes what they call the primary: redis+sentinel://host:26379/master_name?db=0; "
                + _ESCAPE
            )
        if not query.keys() <= _SENTINEL_QUERY:
            raise _wrong(f"the query of a sentinel address may have {', '.join(sorted(_SENTINEL_QUERY))}; {_ESCAPE}")
        return cls(
            hosts=tuple((sentinel.hostname or "", sentinel.port or SENTINEL_PORT) for sentinel in sentinels),
            database=int(query.get("db", "0")),
            username=_unquoted(username or None),
            password=_unquoted(password or None),
            tls=parts.scheme.startswith("rediss"),
            master_name=master_name,
            sentinel_username=query.get("sentinel_username"),
            sentinel_password=query.get("sentinel_password"),
        )


def masked(url: str) -> str:
    """``url`` without its secrets, for people. It need not be one that can be read."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = _SECRET.sub("***", rest)
    # A password may hold an unescaped "/" or "?", so all up to the last "@"; but a socket's path may hold one too.
    user, at, place = rest.partition("@") if scheme == "unix" and not rest.startswith("/") else rest.rpartition("@")
    if scheme == "unix" and rest.startswith("/"):
        user, at, place = "", "", rest
    name = user.partition(":")[0]
    return f"{scheme}://{name + ':***' if at else ''}{at}{place}"


def _unquoted(value: str | None) -> str | None:
    return unquote(value) if value else None


def _wrong(why: str) -> ConfigurationError:
    return ConfigurationError(f"PIPESERVE_REDIS_URL: {why}")
