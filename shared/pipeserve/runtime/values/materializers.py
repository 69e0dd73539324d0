"""The materializers of one pipeline: the author's own, then those for numpy, pandas, PIL and bytes.

No library is imported to find one: a value of a library's type exists only where that library is loaded.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast
from weakref import WeakKeyDictionary

import orjson

from pipeserve.errors import DefinitionError
from pipeserve.runtime.values.artifact_ref import is_media_type
from pipeserve.runtime.values.frames import dump_table, load_table, records, values
from pipeserve.sdk.materializer import Materializer, NotStorableError

_OCTETS = "application/octet-stream"
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


class Materializers:
    """Finds the materializer of a value. Thread-safe."""

    def __init__(self, extra: Sequence[Materializer[Any]] = ()) -> None:
        """``extra``: the author's. Raises DefinitionError for one that does not say all that it must."""
        for materializer in extra:
            _check(materializer)
        self._extra = {materializer.type: materializer for materializer in extra}
        self._found: WeakKeyDictionary[type[Any], Materializer[Any] | None] = WeakKeyDictionary()
        self._built_in: dict[str, Materializer[Any]] = {}
        self.json_options = _options(list(self._extra))
        """What orjson must leave to :meth:`find`, of types that it would write itself."""

    def find(self, value: Any) -> Materializer[Any] | None:
        """The materializer of the value's type or of its nearest base class; None: there is none."""
        kind = cast(type[Any], type(value))
        try:
            return self._found[kind]
        except KeyError:
            found = self._found[kind] = self._search(kind)
            return found

    def named(self, name: str) -> Materializer[Any] | None:
        """The materializer of the type with this full name (:func:`name_of`); imports its library if need be."""
        for kind, materializer in self._extra.items():
            if _full_name(kind) == name:
                return materializer
        return self._load(name) if name in _BUILT_IN else None

    def of_file(self, media_type: str, name: str) -> Materializer[Any] | None:
        """The materializer that wrote a file of this type and name; imports its library if need be."""
        for materializer in self._extra.values():
            if materializer.media_type == media_type and name.endswith(materializer.suffix):
                return materializer
        for kind, made in _BUILT_IN.items():
            if made.media_type == media_type and name.endswith(made.suffix):
                return self._load(kind)
        return None

    def _search(self, kind: type) -> Materializer[Any] | None:
        bases = kind.__mro__[:-1]
        for base in bases:
            if base in self._extra:
                return self._extra[base]
        for name in _BUILT_IN:
            module, _, attribute = name.rpartition(".")
            if getattr(sys.modules.get(module), attribute, None) in bases:
                return self._load(name)
        return None

    def _load(self, name: str) -> Materializer[Any]:
        if name not in self._built_in:
            self._built_in[name] = _BUILT_IN[name]()
        return self._built_in[name]


def name_of(materializer: Materializer[Any]) -> str:
    """The full name of the materializer's type."""
    return next((name for name, made in _BUILT_IN.items() if type(materializer) is made), _full_name(materializer.type))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check(materializer: Materializer[Any]) -> None:
    name = type(materializer).__name__
    if not isinstance(getattr(materializer, "type", None), type):
        raise DefinitionError(f"{name} must say which class it stores, as `type = TheClass`")
    media_type, suffix = getattr(materializer, "media_type", None), getattr(materializer, "suffix", None)
    if not isinstance(media_type, str) or not is_media_type(media_type):
        raise DefinitionError(f'{name} must have a media_type such as "text/csv", not {media_type!r}')
    if not isinstance(suffix, str):
        raise DefinitionError(f'{name} must have a suffix such as ".csv", not {suffix!r}')


def _options(kinds: Sequence[type]) -> int:
    options = 0 if any(_is_numpy(kind) for kind in kinds) else orjson.OPT_SERIALIZE_NUMPY
    if any(dataclasses.is_dataclass(kind) for kind in kinds):
        options |= orjson.OPT_PASSTHROUGH_DATACLASS
    if any(issubclass(kind, (str, int, list, dict)) for kind in kinds):
        options |= orjson.OPT_PASSTHROUGH_SUBCLASS
    return options


def _is_numpy(kind: type) -> bool:
    return any(_full_name(base) == "numpy.ndarray" for base in kind.__mro__)


# ---- what comes along


class _Array(Materializer[Any]):
    """numpy arrays of anything but objects, as ``.npy``."""

    media_type = "application/x-npy"
    suffix = ".npy"

    def __init__(self) -> None:
        import numpy

        self.type = numpy.ndarray

    def dump(self, value: Any) -> bytes:
        import numpy

        if type(value) not in (numpy.ndarray, numpy.memmap):
            raise NotStorableError(f"{type(value).__name__} adds something to numpy.ndarray that .npy would lose")
        if value.dtype.hasobject:
            raise NotStorableError("an array of objects has no stored form; give it a dtype")
        buffer = io.BytesIO()
        numpy.save(buffer, value, allow_pickle=False)
        return buffer.getvalue()

    def load(self, data: bytes) -> Any:
        import numpy

        return numpy.load(io.BytesIO(data), allow_pickle=False)

    def as_json(self, value: Any) -> Any:
        return value.tolist()


class _Table(Materializer[Any]):
    """pandas tables, as ``.npz`` (:mod:`pipeserve.runtime.values.frames`)."""

    media_type = "application/zip"
    suffix = ".npz"

    def __init__(self, name: str) -> None:
        self.type = getattr(import_module("pandas"), name)

    def dump(self, value: Any) -> bytes:
        return dump_table(value)

    def load(self, data: bytes) -> Any:
        return load_table(data)


class _Frame(_Table):
    def __init__(self) -> None:
        super().__init__("DataFrame")

    def as_json(self, value: Any) -> Any:
        return records(value)


class _Series(_Table):
    def __init__(self) -> None:
        super().__init__("Series")

    def as_json(self, value: Any) -> Any:
        return values(value)


class _Image(Materializer[Any]):
    """PIL images, as PNG: pixels, mode, palette and transparency, and nothing else of what a file may say."""

    media_type = "image/png"
    suffix = ".png"

    def __init__(self) -> None:
        self.type = import_module("PIL.Image").Image

    def dump(self, value: Any) -> bytes:
        if value.mode not in _PNG_MODES:
            raise NotStorableError(f"PNG has no images of mode {value.mode}; convert it first, to RGB for example")
        if getattr(value, "n_frames", 1) > 1:
            raise NotStorableError("an image of several frames has no stored form; return them one by one")
        buffer = io.BytesIO()
        value.save(buffer, format="PNG")
        return buffer.getvalue()

    def load(self, data: bytes) -> Any:
        with import_module("PIL.Image").open(io.BytesIO(data), formats=("PNG",)) as image:
            return image.copy()


class _Bytes(Materializer[bytes]):
    """Bytes as they are."""

    type = bytes
    media_type = _OCTETS
    suffix = ".bin"

    def dump(self, value: bytes) -> bytes:
        if type(value) is not bytes:
            raise NotStorableError(f"{type(value).__name__} adds something to bytes that would be lost")
        return value

    def load(self, data: bytes) -> bytes:
        return data


class _Bytearray(Materializer[bytearray]):
    """The same for bytes that can be changed."""

    type = bytearray
    media_type = _OCTETS
    suffix = ".bin"

    def dump(self, value: bytearray) -> bytes:
        if type(value) is not bytearray:
            raise NotStorableError(f"{type(value).__name__} adds something to bytearray that would be lost")
        return bytes(value)

    def load(self, data: bytes) -> bytearray:
        return bytearray(data)


_BUILT_IN: dict[str, type[Materializer[Any]]] = {
    "builtins.bytes": _Bytes,
    "builtins.bytearray": _Bytearray,
    "numpy.ndarray": _Array,
    "pandas.DataFrame": _Frame,
    "pandas.Series": _Series,
    "PIL.Image.Image": _Image,
}
"""By the full name of the type."""
