"""What of the values of a type is masked: all of it, or parts at any depth.

``pipeserve.sdk.masked`` reads it from annotations. None stands for "nothing".
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from pipeserve.sdk.arguments import Access
from pipeserve.sdk.secret import MASK, Mask


class Parts(ABC):
    """What of the values of one type is masked."""

    @abstractmethod
    def values(self, value: Any) -> Iterator[Any]:
        """Every masked value in ``value``."""

    @abstractmethod
    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """``value``, given as JSON values, with what is masked replaced. It is not changed itself."""

    @abstractmethod
    def at(self, access: Access) -> Parts | None:
        """What is masked of a member of the value."""

    @property
    @abstractmethod
    def secret(self) -> bool:
        """Whether any of it is ``Secret``, and not only ``Redact``."""

    def visible(self, location: Sequence[str]) -> tuple[Sequence[str], bool]:
        """The part of a location that may be told, and whether it leads into something masked."""
        found: Parts | None = self
        for index, name in enumerate(location):
            if isinstance(found, Whole):
                return location[:index], True
            found = None if found is None else found.at(("item", name))
        return location, isinstance(found, Whole)


@dataclasses.dataclass(frozen=True, slots=True)
class Whole(Parts):
    """All of it."""

    mask: Mask

    def values(self, value: Any) -> Iterator[Any]:
        """The value itself."""
        yield value

    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """A mask; nothing stays nothing."""
        return value if value is None or (secrets_only and not self.secret) else MASK

    def at(self, access: Access) -> Parts | None:
        """A part of what is masked is masked."""
        return self

    @property
    def secret(self) -> bool:
        """Whether it is ``Secret``."""
        return self.mask.kind == "secret"


class Members(Parts):
    """Some members by name."""

    def __init__(self, kind: type[Any] | None = None) -> None:
        self.kind = kind
        """Whose fields they are; None: keys of a dict."""
        self.fields: dict[str, Parts] = {}
        self.names: dict[str, Parts] = {}
        """The same and their aliases: as they stand in JSON."""
        self.nested = False  # `secret` is being asked: a type may hold itself

    def add(self, name: str, parts: Parts | None, aliases: Iterable[str] = ()) -> None:
        """Add a member that holds something masked."""
        if parts is not None:
            self.fields[name] = parts
            self.names |= dict.fromkeys([name, *aliases], parts)

    def values(self, value: Any) -> Iterator[Any]:
        """Those of the members."""
        for name, parts in self.fields.items():
            if isinstance(value, Mapping):
                mapping = cast(Mapping[str, Any], value)
                if name in mapping:
                    yield from parts.values(mapping[name])
            elif hasattr(value, name):
                yield from parts.values(getattr(value, name))

    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """With these members masked."""
        if isinstance(value, dict):
            return {
                name: self.names[name].hide(member, secrets_only=secrets_only) if name in self.names else member
                for name, member in cast(dict[str, Any], value).items()
            }
        if isinstance(value, list) and hasattr(self.kind, "_fields"):  # a named tuple
            names: Iterable[str] = getattr(cast(Any, self.kind), "_fields", ())
            members = dict(zip(names, cast(list[Any], value), strict=False))
            return list(cast(dict[str, Any], self.hide(members, secrets_only=secrets_only)).values())
        return cast(Any, value)

    def at(self, access: Access) -> Parts | None:
        """What is masked of this member."""
        name = access[1]
        return self.names.get(name) if isinstance(name, str) else None

    @property
    def secret(self) -> bool:
        """Whether any member is."""
        if self.nested:
            return False
        self.nested = True
        try:
            return any(parts.secret for parts in self.fields.values())
        finally:
            self.nested = False


@dataclasses.dataclass(frozen=True, slots=True)
class Root(Parts):
    """What is in a model that is nothing but its root."""

    parts: Parts

    def values(self, value: Any) -> Iterator[Any]:
        """Those of the root."""
        return self.parts.values(getattr(value, "root", value))

    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """In JSON it is its root."""
        return self.parts.hide(value, secrets_only=secrets_only)

    def at(self, access: Access) -> Parts | None:
        """A member of the root."""
        return self.parts if access == ("attribute", "root") else self.parts.at(access)

    @property
    def secret(self) -> bool:
        """Whether the root is."""
        return self.parts.secret


@dataclasses.dataclass(frozen=True, slots=True)
class Each(Parts):
    """Every member of a list, set or variadic tuple; every value of a dict."""

    parts: Parts

    def values(self, value: Any) -> Iterator[Any]:
        """Those of each member."""
        if isinstance(value, Mapping):
            value = cast(Mapping[Any, Any], value).values()
        if isinstance(value, Collection) and not isinstance(value, (str, bytes)):  # no stream: reading it takes from it
            for member in cast(Collection[Any], value):
                yield from self.parts.values(member)

    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """With each member masked."""
        if isinstance(value, dict):
            members = cast(dict[str, Any], value)
            return {name: self.parts.hide(member, secrets_only=secrets_only) for name, member in members.items()}
        if isinstance(value, list):
            return [self.parts.hide(member, secrets_only=secrets_only) for member in cast(list[Any], value)]
        return value

    def at(self, access: Access) -> Parts | None:
        """All are alike."""
        return self.parts

    @property
    def secret(self) -> bool:
        """Whether its members are."""
        return self.parts.secret


@dataclasses.dataclass(frozen=True, slots=True)
class Places(Parts):
    """Some members of a sequence of known length."""

    parts: tuple[Parts | None, ...]

    def values(self, value: Any) -> Iterator[Any]:
        """Those of the members."""
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            for parts, member in zip(self.parts, cast(Sequence[Any], value), strict=False):
                if parts is not None:
                    yield from parts.values(member)

    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """With these members masked."""
        if not isinstance(value, list):
            return value
        members = cast(list[Any], value)
        hidden = [
            member if parts is None else parts.hide(member, secrets_only=secrets_only)
            for parts, member in zip(self.parts, members, strict=False)
        ]
        return hidden + members[len(hidden) :]

    def at(self, access: Access) -> Parts | None:
        """What is masked of this member."""
        try:
            return self.parts[int(access[1])]
        except (ValueError, TypeError, IndexError):
            return None

    @property
    def secret(self) -> bool:
        """Whether any member is."""
        return any(parts is not None and parts.secret for parts in self.parts)


@dataclasses.dataclass(frozen=True, slots=True)
class AnyOf(Parts):
    """What any of several types masks. A member of one type is masked where its name stands in another one too."""

    choices: tuple[Parts, ...]

    def values(self, value: Any) -> Iterator[Any]:
        """Those of the types that the value may have."""
        for parts in self._fitting(value):
            yield from parts.values(value)

    def hide(self, value: Any, *, secrets_only: bool = False) -> Any:
        """As each of the types would."""
        for parts in self.choices:
            value = parts.hide(value, secrets_only=secrets_only)
        return value

    def at(self, access: Access) -> Parts | None:
        """What any of them masks of this member."""
        return any_of([found for parts in self.choices if (found := parts.at(access)) is not None])

    @property
    def secret(self) -> bool:
        """Whether any of them is."""
        return any(parts.secret for parts in self.choices)

    def _fitting(self, value: Any) -> Sequence[Parts]:
        own = [
            parts
            for parts in self.choices
            if not isinstance(parts, Members) or parts.kind is None or type(value) is parts.kind
        ]
        return own or self.choices


def any_of(choices: Sequence[Parts]) -> Parts | None:
    """All of ``choices`` as one."""
    return None if not choices else choices[0] if len(choices) == 1 else AnyOf(tuple(choices))
