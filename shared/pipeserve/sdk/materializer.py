"""``Materializer``: how values of one type are stored as bytes, and read back."""

from __future__ import annotations

import base64
import builtins
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class NotStorableError(ValueError):
    """A value has no stored form from which an equal value of the same type would come back. The message says why."""


class Materializer(ABC, Generic[T]):
    """Stores values of ``type``, and of its subclasses, as bytes.

    Register one with ``@pipeline(materializers=(MyMaterializer(),))``::

        class PointsMaterializer(Materializer[Points]):
            type = Points
            media_type = "text/csv"
            suffix = ".csv"

            def dump(self, value: Points) -> bytes: ...
            def load(self, data: bytes) -> Points: ...

    It is called from any thread, by several at once.
    """

    type: builtins.type[T]
    media_type: str
    """Of the bytes, for whoever downloads them."""
    suffix: str
    """What their file's name ends with, with its dot."""

    @abstractmethod
    def dump(self, value: T) -> bytes:
        """The value as bytes. Raises NotStorableError for one that :meth:`load` could not bring back."""

    @abstractmethod
    def load(self, data: bytes) -> T:
        """What :meth:`dump` made of a value, as a value again."""

    def as_json(self, value: T) -> Any:
        """How the value stands in a JSON answer: its bytes in base64, unless a subclass knows better."""
        return base64.b64encode(self.dump(value)).decode()
