"""``CanonicalForms``: makes the form of a value and of all that it holds."""

from __future__ import annotations

from typing import Any

from pipeserve.runtime.cache.canonical.encoding import INLINE, NoCanonicalFormError, digest
from pipeserve.runtime.cache.canonical.objects import object_form
from pipeserve.runtime.cache.canonical.values import COMPOUNDS, LEAVES

_DEEPEST = 100  # values inside values: each takes four frames of the interpreter's thousand


class CanonicalForms:
    """Makes forms of one value and all that it holds. One object serves one call, in one thread."""

    __slots__ = ("_depth", "_seen")

    def __init__(self) -> None:
        self._depth = 0
        # By identity, so that what is held many times is looked at once. The value stands with it to keep its id.
        self._seen: dict[int, tuple[Any, bytes | None]] = {}

    def form(self, value: object) -> bytes:
        """Its canonical form, of at most some 260 bytes.

        Raises NoCanonicalFormError, and whatever an author's own code raises when it is looked at.
        """
        leaf = LEAVES.get(type(value))
        if leaf is None:
            return self._compound(value)
        form = leaf(value)
        return form if len(form) <= INLINE else b"#" + digest(form)

    def _compound(self, value: object) -> bytes:
        identity = id(value)
        known = self._seen.get(identity)
        if known is not None:
            if known[1] is None:
                raise NoCanonicalFormError(type(value), "contains itself")
            return known[1]
        if self._depth == _DEEPEST:
            raise NoCanonicalFormError(type(value), f"lies more than {_DEEPEST} values deep")
        self._seen[identity] = (value, None)
        self._depth += 1
        form = COMPOUNDS.get(type(value), object_form)(self, value)
        self._depth -= 1
        if len(form) > INLINE:
            form = b"#" + digest(form)
        self._seen[identity] = (value, form)
        return form
