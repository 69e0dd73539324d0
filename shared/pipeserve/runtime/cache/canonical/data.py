"""The canonical forms of numpy arrays, pandas tables and PIL images.

None of these libraries is imported here: a value of theirs can only exist once they are. A type is theirs by the module
that it names, so an author's subclass is not: it may hold more than its base shows, and has to say what counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pipeserve.runtime.cache.canonical.encoding import NoCanonicalFormError, digest, instance, kind_of

if TYPE_CHECKING:
    from pipeserve.runtime.cache.canonical.forms import CanonicalForms


def data_form(forms: CanonicalForms, value: object) -> bytes | None:
    """Its form, if ``value`` is of numpy, pandas or PIL and can have one; else None."""
    library = _LIBRARIES.get(type(value).__module__.partition(".")[0])
    return None if library is None else library(forms, value)


# ---- numpy


def _numpy_form(forms: CanonicalForms, value: Any) -> bytes | None:
    numpy: Any = sys.modules["numpy"]
    kind = kind_of(value)
    if kind is numpy.ndarray or kind is numpy.memmap:
        return _array_form(forms, value)
    if isinstance(value, numpy.generic):
        return instance(kind, _array_form(forms, numpy.asarray(value)))
    if isinstance(value, numpy.dtype):
        return instance(numpy.dtype, forms.form(repr(value)))
    return None


def _array_form(forms: CanonicalForms, array: Any) -> bytes:
    dtype = array.dtype
    described = dtype.str if dtype.kind in "biufcmMSUO" else repr(dtype)
    return instance(
        kind_of(array), forms.form(described), forms.form(array.shape), *_array_content(forms, array, dtype)
    )


def _array_content(forms: CanonicalForms, array: Any, dtype: Any) -> Iterable[bytes]:
    numpy: Any = sys.modules["numpy"]
    if dtype.names:  # field by field: the bytes between them are anything
        return [_array_form(forms, array[name]) for name in dtype.names]
    if dtype.kind in "OT":  # the buffer holds addresses
        return [forms.form(item) for item in array.ravel().tolist()]
    if dtype.char in "gG":  # a long double is padded with anything
        return [forms.form(repr(item)) for item in array.flat]
    if dtype.kind not in "biufcmMSUV":
        raise NoCanonicalFormError(kind_of(array), f"is of {dtype}, of which bytes do not tell the content")
    if not array.nbytes:
        return []
    flat = numpy.ascontiguousarray(array).reshape(-1)
    return [digest(flat.view(numpy.uint8))]


# ---- pandas


def _pandas_form(forms: CanonicalForms, value: Any) -> bytes | None:
    pandas: Any = sys.modules["pandas"]
    kind = kind_of(value)
    if kind is pandas.DataFrame:
        columns = [_values_form(forms, value.iloc[:, place].array) for place in range(value.shape[1])]
        return instance(kind, forms.form(value.index), forms.form(value.columns), forms.form(value.attrs), *columns)
    if kind is pandas.Series:
        parts = (forms.form(value.index), forms.form(value.name), forms.form(value.attrs))
        return instance(kind, *parts, _values_form(forms, value.array))
    if isinstance(value, pandas.Index):
        return _index_form(forms, value)
    if isinstance(value, pandas.api.extensions.ExtensionArray):
        return _values_form(forms, value)
    if value is pandas.NaT or value is pandas.NA:
        return instance(kind)
    shown = _pandas_scalar(pandas, value)
    return None if shown is None else instance(kind, *map(forms.form, shown))


def _pandas_scalar(pandas: Any, value: Any) -> tuple[object, ...] | None:
    if isinstance(value, pandas.Timestamp):
        return (value.asm8, value.tzinfo)
    if isinstance(value, pandas.Timedelta):
        return (value.asm8,)
    if isinstance(value, pandas.Period):
        return (value.ordinal, value.freqstr)
    if isinstance(value, pandas.Interval):
        return (value.left, value.right, value.closed)
    return None


def _index_form(forms: CanonicalForms, index: Any) -> bytes:
    levels = range(index.nlevels)
    arrays = [index.array] if index.nlevels == 1 else [index.get_level_values(level).array for level in levels]
    frequency = getattr(index, "freqstr", None)
    return instance(
        kind_of(index),
        forms.form(list(index.names)),
        forms.form(frequency),
        *(_values_form(forms, array) for array in arrays),
    )


def _values_form(forms: CanonicalForms, values: Any) -> bytes:
    """A column's form, with its type."""
    pandas: Any = sys.modules["pandas"]
    if kind_of(values) is pandas.arrays.NumpyExtensionArray:  # of text there is a subclass
        return _array_form(forms, values.to_numpy())
    if isinstance(values, pandas.Categorical):
        categories = forms.form(values.categories)
        return instance(kind_of(values), forms.form(values.ordered), categories, _array_form(forms, values.codes))
    # pandas' hash is of 64 bits per element, and in some types a missing one has the hash of a certain other.
    hashes, missing = pandas.util.hash_array(values), values.isna()
    dtype = forms.form(repr(values.dtype))
    return instance(kind_of(values), dtype, _array_form(forms, hashes), _array_form(forms, missing))


# ---- PIL


def _image_form(forms: CanonicalForms, value: Any) -> bytes | None:
    kind = kind_of(value)
    if kind.__name__ == "IFDRational":  # a resolution, among an image's information
        return instance(kind, forms.form(value.numerator), forms.form(value.denominator))
    images: Any = sys.modules.get("PIL.Image")
    if images is None or not isinstance(value, images.Image):
        return None
    if getattr(value, "is_animated", False):
        raise NoCanonicalFormError(kind, "has more than one frame")
    palette = value.palette
    colours = None if palette is None else (palette.mode, value.getpalette(palette.mode))
    shown = (value.mode, value.size, value.tobytes(), colours, dict(value.info))
    return instance(kind, *map(forms.form, shown))


_LIBRARIES: dict[str, Callable[[CanonicalForms, Any], bytes | None]] = {
    "numpy": _numpy_form,
    "pandas": _pandas_form,
    "PIL": _image_form,
}
