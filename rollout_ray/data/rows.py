"""Convert Python rows to Arrow without a change of value.

Error messages name the row by its place: file and line, or position in a list. Opens no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from rollout_ray.core.errors import DatasetError
from rollout_ray.data.json_files import JsonLine

_MISFITS = (pa.ArrowException, UnicodeError, OverflowError, RecursionError, TypeError)
# Arrow silently converts other values to these types: text to bytes, times to days, local times to a time zone, false to 0.
_LENIENT = ("binary", "date32", "timestamp", "double")


def infer_schema(batches: Iterable[Sequence[JsonLine]]) -> pa.Schema:
    """Return the schema that holds the rows of all batches. Only one batch is held at a time.

    Columns are in order of first appearance, as in a table of all rows.

    Raises:
        DatasetError: The values of a column have types that no column type holds together.
    """
    types: dict[str, pa.DataType] = {}
    for lines in batches:
        rows = [line.row for line in lines]
        place = [line.place for line in lines].__getitem__
        for column in _column_names(rows, place):
            values = [row.get(column) for row in rows]
            types[column] = _widen(types.get(column, pa.null()), values, column, place)
    return pa.schema(list(types.items()))


def _widen(known: pa.DataType, values: list[Any], column: str, place: Callable[[int], str]) -> pa.DataType:
    """Return the type that holds these values beside earlier values of type `known`."""
    kind = _to_array(values, column, place).type
    if kind == known:
        return known
    try:
        return _unify(known, kind)
    except _MISFITS as error:
        first = _first_misfit(values, lambda some: _unify(known, pa.array(some).type))
        raise DatasetError(
            f"{place(first)}, column '{column}': {pa.array(values[: first + 1]).type} after rows of {known}. "
            "Give the column one type"
        ) from error


def _unify(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("value", kind)]) for kind in (first, second)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def to_batch(lines: Sequence[JsonLine], schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows as a batch of this schema. Missing columns are null.

    Raises:
        DatasetError: A value does not fit its column exactly, such as a large integer among floats.
    """
    place = [line.place for line in lines].__getitem__
    arrays = [_to_array([line.row.get(f.name) for line in lines], f.name, place, f.type) for f in schema]
    return pa.record_batch(arrays, schema=schema)


def from_rows(rows: Sequence[Any], place: Callable[[int], str]) -> pa.Table:
    """Return a table of dicts. A column that a row lacks is null there.

    Args:
        rows: The rows; each must be a dict.
        place: Names a row, by its number from 0, in error messages.

    Raises:
        DatasetError: A row is not a dict, or Arrow would change a value.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DatasetError(f"{place(number)}: {type(row).__name__} where a dict is needed. Give a list of dicts")
    columns = _column_names(rows, place)
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        arrays.append(_to_array(values, column, place))
    return pa.table(arrays, names=columns)


def _column_names(rows: Sequence[Mapping[Any, Any]], place: Callable[[int], str]) -> list[str]:
    """Return the keys of the rows in order of first appearance. Raise DatasetError if one cannot name a column."""
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        for key in row:
            if key not in names and (not isinstance(key, str) or not _is_utf8(key)):
                raise DatasetError(f"{place(number)}: the key {key!a} cannot name a column. Use a text as the key")
            names[key] = None
    return list(names)


def _to_array(values: list[Any], column: str, place: Callable[[int], str], kind: pa.DataType | None = None) -> pa.Array:
    """Return the values as an array, of type `kind` if given. Raise DatasetError if a value does not fit, or changes."""
    try:
        array = pa.array(values, kind)
    except _MISFITS as error:
        first = _first_misfit(values, lambda some: pa.array(some, kind))
        raise DatasetError(f"{place(first)}, column '{column}': {error}. Give the column one type") from error
    refuse_changed(array, values, column, place)
    return array


def refuse_changed(
    array: pa.Array | pa.ChunkedArray, values: Iterable[Any], column: str, place: Callable[[int], str]
) -> None:
    """Raise DatasetError if Arrow changed a value. The message names the first one by `place`."""
    if (changed := _first_changed(array, values)) is not None:
        raise DatasetError(
            f"{place(changed)}, column '{column}': the values of this column are of different types, and {array.type} "
            "would change this one. Give the column one type"
        )


def _first_changed(array: pa.Array | pa.ChunkedArray, values: Iterable[Any]) -> int | None:
    """Return the index of the first value that Arrow changed, or None if `array` holds the values exactly."""
    if not any(kind in str(array.type) for kind in _LENIENT):
        return None
    pairs = zip(array.to_pylist(), values, strict=True)
    return next((number for number, (held, given) in enumerate(pairs) if not _same(held, given)), None)


def _same(held: Any, given: Any) -> bool:
    if isinstance(given, dict) and isinstance(held, dict):
        return all(key in held and _same(held[key], value) for key, value in given.items())
    if isinstance(held, list) and not isinstance(given, (str, bytes)) and hasattr(given, "__len__"):
        return len(held) == len(given) and all(map(_same, held, given))
    if held is None:
        return given is None or given != given or type(given).__name__ in ("NAType", "NaTType")
    if isinstance(given, bool) and not isinstance(held, bool):
        return False  # Arrow makes False beside 0.5 in an object a 0.0, which Python calls equal
    return bool(held == given or (held != held and given != given))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_misfit(values: list[Any], convert: Callable[[list[Any]], Any]) -> int:
    """Return the index of the first value that `convert` refuses together with the values before it, by bisection."""
    low = 0
    high = len(values)
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            convert(values[:middle])
            low = middle
        except _MISFITS:
            high = middle
    return high - 1
