"""pandas tables as bytes and back, with their types and without pickle.

A table is an ``.npz`` file: one array a column (``numpy.load`` opens it anywhere) and ``table.json``, which says what
they mean. pandas' own formats either need another library (Parquet, Arrow), run code when read (pickle), or lose types
(CSV, and JSON by its "table" schema: widths of numbers, units of times, the last digits of floats).
"""

from __future__ import annotations

import io
import json
import zipfile
from importlib import import_module
from typing import Any, cast

from pipeserve.sdk.materializer import NotStorableError

_TABLE = "table.json"
_PLAIN = (str, bool, int, float, type(None))


def dump_table(table: Any) -> bytes:
    """A DataFrame or Series as an ``.npz`` file. Raises NotStorableError, naming the column."""
    pandas = _pandas()
    if type(table) not in (pandas.DataFrame, pandas.Series):
        raise NotStorableError(f"{type(table).__name__} adds something to pandas that a plain table would lose")
    writer = _Writer()
    described: dict[str, Any] = {"index": writer.index(table.index, "the index"), "attrs": _attrs(table.attrs)}
    if isinstance(table, pandas.Series):
        described |= {"series": writer.column(table, "the series"), "name": _label(table.name, "the series' name")}
    else:
        described["names"] = writer.index(table.columns, "the column names")
        described["columns"] = [
            writer.column(table.iloc[:, place], f"column {name!r}") for place, name in enumerate(table.columns)
        ]
    return writer.file(described)


def load_table(data: bytes) -> Any:
    """The DataFrame or Series that :func:`dump_table` was given."""
    pandas = _pandas()
    reader = _Reader(data)
    described = reader.described
    index = reader.index(described["index"])
    if "series" in described:
        table: Any = reader.series(described["series"], index, _name(described["name"]))
    else:
        columns = {place: reader.series(spec, index) for place, spec in enumerate(described["columns"])}
        table = pandas.DataFrame(columns, index=index)
        table.columns = reader.index(described["names"])
    table.attrs = described["attrs"]
    return table


def records(frame: Any) -> list[dict[str, Any]]:
    """A DataFrame's rows as JSON values; its index is left out. Raises NotStorableError for columns of one name."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise NotStorableError("a DataFrame whose columns share a name has no form in JSON")
    columns = [values(frame.iloc[:, place]) for place in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def values(series: Any) -> list[Any]:
    """A Series as JSON values: times as ISO 8601, missing values as None."""
    import numpy

    pandas = _pandas()
    found: list[Any] = series.tolist()
    kind: str = series.dtype.kind
    if isinstance(series.dtype, numpy.dtype) and kind in "biuf":
        return found  # NaN becomes null where it is written
    missing: list[bool] = series.isna().tolist()
    exact = (pandas.Timestamp, pandas.Timedelta)
    return [
        None if gone else value.isoformat() if isinstance(value, exact) else value
        for value, gone in zip(found, missing, strict=True)
    ]


class _Writer:
    """Collects the arrays of one table."""

    def __init__(self) -> None:
        self._pandas = _pandas()
        self._buffer = io.BytesIO()
        self._zip = zipfile.ZipFile(self._buffer, "w")
        self._count = 0

    def file(self, described: dict[str, Any]) -> bytes:
        """The whole file."""
        self._zip.writestr(_TABLE, json.dumps(described))
        self._zip.close()
        return self._buffer.getvalue()

    def column(self, series: Any, where: str) -> dict[str, Any]:
        """Write a column, or an index's values; returns how to read it."""
        import numpy

        dtype = series.dtype
        if isinstance(dtype, numpy.dtype):
            if dtype.kind != "O":
                return {"kind": "array", "array": self._array(series.to_numpy())}
            return {"kind": "objects", "values": [_plain(value, where) for value in series]}
        if isinstance(dtype, self._pandas.CategoricalDtype):
            return {
                "kind": "categorical",
                "codes": self._array(self._pandas.Series(series).cat.codes.to_numpy()),
                "categories": self.index(dtype.categories, f"the categories of {where}"),
                "ordered": bool(dtype.ordered),
            }
        name = _type_name(dtype, where)
        if isinstance(dtype, self._pandas.DatetimeTZDtype):
            naive = self._pandas.DatetimeIndex(series).tz_convert(None)
            return {"kind": "zoned", "dtype": name, "array": self._array(naive.to_numpy())}
        missing = series.isna()
        if isinstance(dtype, self._pandas.StringDtype):
            texts = [None if gone else str(text) for text, gone in zip(series, missing, strict=True)]
            return {"kind": "texts", "dtype": name, "values": texts}
        if dtype.kind in "biuf" and hasattr(dtype, "numpy_dtype"):  # Int64, Float32, boolean, …: numbers with a mask
            filled = series.to_numpy(dtype=dtype.numpy_dtype, na_value=0)
            mask = self._array(numpy.asarray(missing))
            return {"kind": "masked", "dtype": name, "array": self._array(filled), "mask": mask}
        raise NotStorableError(f"{where} is of type {dtype}, which has no stored form")

    def index(self, index: Any, where: str) -> dict[str, Any]:
        """Write an index; returns how to read it."""
        names = [_label(name, f"a name of {where}") for name in index.names]
        if isinstance(index, self._pandas.RangeIndex):
            return {"kind": "range", "range": [index.start, index.stop, index.step], "names": names}
        if isinstance(index, self._pandas.MultiIndex):
            levels = [self.column(index.get_level_values(place), where) for place in range(index.nlevels)]
            return {"kind": "multi", "levels": levels, "names": names}
        return self.column(index, where) | {"names": names, "freq": getattr(index, "freqstr", None)}

    def _array(self, array: Any) -> str:
        from numpy.lib import format as npy

        name = f"{self._count}.npy"
        self._count += 1
        with self._zip.open(name, "w", force_zip64=True) as file:
            npy.write_array(file, array, allow_pickle=False)
        return name


class _Reader:
    """Reads what a :class:`_Writer` wrote."""

    def __init__(self, data: bytes) -> None:
        self._pandas = _pandas()
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        self.described: dict[str, Any] = json.loads(self._zip.read(_TABLE))

    def series(self, spec: dict[str, Any], index: Any, name: Any = None) -> Any:
        """One column with its index."""
        column = self.column(spec)
        dtype = object if column.dtype == object else None  # pandas 3 would guess, and make texts of objects
        return self._pandas.Series(column, index=index, name=name, dtype=dtype)

    def column(self, spec: dict[str, Any]) -> Any:
        """One column's values, as an array."""
        import numpy

        match spec["kind"]:
            case "array":
                return self._array(spec["array"])
            case "objects":
                return numpy.array(spec["values"], dtype=object)
            case "texts":
                return self._pandas.array(spec["values"], dtype=spec["dtype"])
            case "categorical":
                dtype = self._pandas.CategoricalDtype(self.index(spec["categories"]), ordered=spec["ordered"])
                return self._pandas.Categorical.from_codes(self._array(spec["codes"]), dtype=dtype)
            case "zoned":
                zone = self._pandas.api.types.pandas_dtype(spec["dtype"]).tz
                return self._pandas.DatetimeIndex(self._array(spec["array"])).tz_localize("UTC").tz_convert(zone).array
            case "masked":
                masked: Any = self._pandas.array(self._array(spec["array"]), dtype=spec["dtype"])
                masked[self._array(spec["mask"])] = self._pandas.NA
                return masked
            case kind:
                raise ValueError(f"a table with a column of the unknown kind {kind!r}")

    def index(self, spec: dict[str, Any]) -> Any:
        """One index."""
        names = [_name(name) for name in spec["names"]]
        if spec["kind"] == "range":
            return self._pandas.RangeIndex(*spec["range"], name=names[0])
        if spec["kind"] == "multi":
            return self._pandas.MultiIndex.from_arrays([self.column(level) for level in spec["levels"]], names=names)
        column = self.column(spec)
        index: Any = self._pandas.Index(column, dtype=column.dtype, name=names[0])
        if spec["freq"] is not None:
            index = type(index)(index, freq=spec["freq"])
        return index

    def _array(self, name: str) -> Any:
        from numpy.lib import format as npy

        with self._zip.open(name) as file:
            return npy.read_array(file, allow_pickle=False)


def _type_name(dtype: Any, where: str) -> str:
    """A name from which pandas makes this very type again."""
    pandas = _pandas()
    for name in (str(dtype), repr(dtype)):
        try:
            if pandas.api.types.pandas_dtype(name) == dtype:
                return name
        except TypeError:  # not a name that it knows
            continue
    raise NotStorableError(f"{where} is of type {dtype!r}, which has no stored form")


def _pandas() -> Any:
    """pandas, as Any: it has no types of its own."""
    return import_module("pandas")


def _plain(value: Any, where: str) -> Any:
    if type(value) not in _PLAIN:
        raise NotStorableError(f"{where} holds a {type(value).__name__} among its objects, which has no stored form")
    return value


def _label(name: Any, where: str) -> Any:
    """A name of a column or an index, which may be a tuple."""
    return (
        [_plain(part, where) for part in cast(tuple[Any, ...], name)]
        if isinstance(name, tuple)
        else _plain(name, where)
    )


def _name(label: Any) -> Any:
    return tuple(cast(list[Any], label)) if isinstance(label, list) else label


def _attrs(attrs: dict[Any, Any]) -> dict[Any, Any]:
    try:
        if json.loads(json.dumps(attrs)) == attrs:
            return attrs
    except (TypeError, ValueError):  # no JSON at all
        pass
    raise NotStorableError("the table's attrs hold something other than plain JSON values")
