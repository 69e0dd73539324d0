"""The code fingerprint: which state of the code a deployment was made from."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def fingerprint(name: str, functions: Iterable[Callable[..., Any]]) -> str:
    """SHA-256 in hex over the modules in which ``functions`` are written, each whole: a helper that a step calls counts
    too. Paths do not count, so the same code has the same fingerprint on every machine.

    Modules that these import are not read: a changed dependency keeps the fingerprint.
    """
    digests: set[bytes] = set()
    for function in functions:
        digests.add(_module_digest(inspect.unwrap(function)))
    whole = hashlib.sha256(name.encode())
    for digest in sorted(digests):
        whole.update(digest)
    return whole.hexdigest()


def source_of(function: Callable[..., Any]) -> str | None:
    """The function's own source text, if it has a file."""
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return None


def _module_digest(function: Callable[..., Any]) -> bytes:
    try:
        file = inspect.getsourcefile(function)
        if file is not None and Path(file).is_file():
            return hashlib.sha256(Path(file).read_bytes()).digest()
    except TypeError:
        pass  # a builtin or a callable object: it has no file
    code = getattr(function, "__code__", None)
    text = (
        repr(function)
        if code is None
        else f"{code.co_code!r}{code.co_names!r}{[c for c in code.co_consts if not hasattr(c, 'co_code')]!r}"
    )
    return hashlib.sha256(text.encode()).digest()
