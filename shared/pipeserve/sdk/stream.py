"""``Stream[T]``: what a step takes that reads another step's yields while that one still runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


class Stream(ABC, Generic[T]):
    """The values that another step yields, from the first, each as soon as it is there.

    ``for`` in a ``def`` step, ``async for`` in an ``async def`` step. It may be read more than once. When the yielding
    step fails, so does the reading.
    """

    __slots__ = ()

    @abstractmethod
    def __iter__(self) -> Iterator[T]: ...

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[T]: ...

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In a request it is a list."""
        item = next(iter(get_args(source)), Any)
        return core_schema.no_info_after_validator_function(as_stream, handler.generate_schema(list[item]))


class Streamed(list[T], Stream[T]):
    """All that a step has yielded: a list, and a Stream that has ended. In tests: ``my_step(Streamed(["a", "b"]))``."""

    __slots__ = ()  # it is compared and hashed as a list: Streamed[str](...) must not leave its type on it

    def __aiter__(self) -> AsyncIterator[T]:
        return _Ended(iter(self))


class _Ended(AsyncIterator[T]):
    """Values that are all there. A class: an async generator that is left early needs its loop to clean up."""

    def __init__(self, values: Iterator[T]) -> None:
        self._values = values

    async def __anext__(self) -> T:
        for value in self._values:
            return value
        raise StopAsyncIteration


def is_stream(annotation: Any) -> bool:
    """Whether a parameter of this type takes values while they are yielded."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation is Stream or get_origin(annotation) is Stream


def as_stream(value: Iterable[T]) -> Stream[T]:
    """A value that is there as a whole, for a parameter that takes a Stream."""
    return value if isinstance(value, Stream) else Streamed(value)
