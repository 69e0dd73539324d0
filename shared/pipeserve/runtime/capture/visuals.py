"""Draws what steps show, and bounds how much of it one run keeps.

Heavy libraries are never imported here but by a value of theirs: what is not loaded has made no value.
"""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from pipeserve.sdk.visual import HTML, PNG, Markdown

MOST = 32
"""Visualizations of one run that are kept."""
MOST_BYTES = 8_388_608
"""And the bytes of all of them."""
_ROWS = 200  # of a table
_COLUMNS = 50
_PLAIN = frozenset({str, int, float, bool, bytes, type(None), dict, list, tuple, set})
"""Types of values that show nothing by themselves: most values, so that the rest may take a longer look."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A value as it is shown."""

    media_type: str
    data: bytes


class NotVisualError(TypeError):
    """There is no way to show a value of this type."""

    def __init__(self, value: object) -> None:
        super().__init__(
            f"a {type(value).__name__} can't be shown; make it HTML, Markdown or PNG, a PIL image, a DataFrame or a "
            "matplotlib figure, or give it a _repr_html_ or _repr_png_ method"
        )


class VisualBudget:
    """What one run may still show. Thread-safe."""

    __slots__ = ("_bytes", "_count", "_lock", "_told")

    def __init__(self) -> None:
        self._count = 0
        self._bytes = 0
        self._told = False
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether nothing more is kept, however small."""
        return self._count >= MOST

    def take(self, size: int) -> int | None:
        """The number, from 1, of one of ``size`` bytes; None: it is not kept."""
        with self._lock:
            if self.full or self._bytes + size > MOST_BYTES:
                return None
            self._count += 1
            self._bytes += size
            return self._count

    def say_so(self) -> bool:
        """Something was not kept: whether this is the time to say so, which is the first."""
        with self._lock:
            told, self._told = self._told, True
            return not told


def shows_itself(value: object) -> bool:
    """Whether a step that returns ``value`` shows it."""
    if type(value) in _PLAIN:
        return False
    return isinstance(value, (HTML, Markdown, PNG)) or _is_image(value) or _is_table(value) or _is_figure(value)


def render(value: Any) -> Rendered:
    """``value`` as it is shown. Raises NotVisualError, and what drawing it raises."""
    if isinstance(value, Rendered):  # it comes from the process that ran the step
        return value
    if isinstance(value, HTML):
        return Rendered("text/html", _text(value))
    if isinstance(value, Markdown):
        return Rendered("text/markdown", _text(value))
    if isinstance(value, PNG):
        return Rendered("image/png", bytes(value))
    if _is_image(value):
        return _image(value)
    if _is_table(value):
        return _table(value)
    if _is_figure(value):
        return _figure(value)
    return _notebook_form(value)


def _is_image(value: object) -> bool:
    return _is(value, "PIL.Image", "Image")


def _is_table(value: object) -> bool:
    return _is(value, "pandas", "DataFrame")


def _is_figure(value: object) -> bool:
    return _is(value, "matplotlib.figure", "Figure")


def _is(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _image(image: Any) -> Rendered:
    buffer = io.BytesIO()
    if image.mode == "I":
        image = image.convert("I;16")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):  # those that PNG has
        image = image.convert("RGBA" if "A" in image.mode or "a" in image.mode else "RGB")
    image.save(buffer, format="PNG")
    return Rendered("image/png", buffer.getvalue())


def _table(table: Any) -> Rendered:
    rows, columns = table.shape
    shown = table.iloc[:_ROWS, :_COLUMNS]
    page: str = shown.to_html(border=0)
    left_out = [
        f"{count} more {kind}" for count, kind in ((rows - _ROWS, "rows"), (columns - _COLUMNS, "columns")) if count > 0
    ]
    if left_out:
        page += f"\n<p>… {' and '.join(left_out)}</p>"
    return Rendered("text/html", _text(page))


def _figure(figure: Any) -> Rendered:
    backend: Any = import_module("matplotlib.backends.backend_agg")
    buffer = io.BytesIO()
    canvas = figure.canvas
    try:
        # Not savefig or pyplot: these work through settings that all threads of the process share.
        backend.FigureCanvasAgg(figure).print_png(buffer)
    finally:
        figure.set_canvas(canvas)
    return Rendered("image/png", buffer.getvalue())


def _notebook_form(value: Any) -> Rendered:
    """What a notebook would show. Such a method may give None, or its value with metadata."""
    for method, media_type in (("_repr_png_", "image/png"), ("_repr_html_", "text/html")):
        draw = None if isinstance(value, type) else getattr(value, method, None)
        found: Any = draw() if callable(draw) else None
        if isinstance(found, tuple):
            found = next(iter(cast(tuple[Any, ...], found)), None)
        if isinstance(found, bytes) and media_type == "image/png":
            return Rendered(media_type, found)
        if isinstance(found, str) and media_type == "text/html":
            return Rendered(media_type, _text(found))
    raise NotVisualError(value)
