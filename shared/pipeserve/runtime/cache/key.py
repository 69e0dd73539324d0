"""``CacheKey``: by what a step's calls are told apart, part by part, so that a miss can say what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pipeserve.runtime.cache.canonical.encoding import NoCanonicalFormError, digest, type_name
from pipeserve.runtime.cache.canonical.forms import CanonicalForms
from pipeserve.runtime.cache.canonical.values import LEAVES
from pipeserve.sdk.cache import Cache


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What one call of a step must have in common with another to share its result."""

    digest: str
    """Stands for the step, its code and its arguments; 32 hexadecimal digits, the same in every process."""
    parts: tuple[tuple[str, bytes], ...]
    """``("code", …)`` first; then each argument's name and 16 bytes that stand for its value, by name; or
    ``("key", …)`` alone, if the policy has a function for it."""


class UnhashableArgumentError(Exception):
    """An argument can't be compared with those of other calls, so the call can't be cached. It is no fault of a run."""

    def __init__(self, argument: str, type_name: str, reason: str) -> None:
        self.argument = argument
        """Its name; ``key`` for what the policy's key function does or returns."""
        self.type_name = type_name
        """The type that is at fault: the argument's own, or that of something inside it."""
        super().__init__(f"The call can't be cached: {reason}.")


def cache_key(step: str, code: bytes, arguments: Mapping[str, Any], policy: Cache) -> CacheKey:
    """The key of a call of ``step``, whose code has the digest ``code``, with these arguments by name.

    The order of the arguments does not count. Raises UnhashableArgumentError, and nothing else.
    """
    if policy.key is not None:
        names = ["code", "key"]
        parts = [code, _part("key", _chosen(policy.key, arguments))]
    else:
        names = ["code", *sorted(arguments)]
        parts = [code]
        for name in names[1:]:
            value: object = arguments[name]
            leaf = LEAVES.get(type(value))
            parts.append(digest(leaf(value)) if leaf is not None else _part(name, value))
    whole = repr((step, names, len(code))).encode() + b"".join(parts)  # the names say how many parts of 16 bytes follow
    return CacheKey(blake2b(whole, digest_size=16).hexdigest(), tuple(zip(names, parts, strict=True)))


def _part(name: str, value: object) -> bytes:
    try:
        return digest(CanonicalForms().form(value))
    except NoCanonicalFormError as error:
        verb = "is" if error.type_name == type_name(type(value)) else "holds"
        reason = f"argument {name!r} {verb} a value of type {error.type_name}, which {error.reason}"
        raise UnhashableArgumentError(name, error.type_name, reason) from None
    # An author's properties, iterators and __pipeserve_cache_key__ may raise anything when they are looked at.
    except Exception as error:
        kind = type_name(type(value))
        reason = f"looking at argument {name!r}, of type {kind}, raised {type_name(type(error))}"
        raise UnhashableArgumentError(name, kind, reason) from error


def _chosen(key: Callable[..., object], arguments: Mapping[str, Any]) -> object:
    try:
        return key(**arguments)
    except Exception as error:  # the author's function; the step itself may well do with these arguments
        kind = type_name(type(error))
        raise UnhashableArgumentError("key", kind, f"its key function raised {kind}") from error
