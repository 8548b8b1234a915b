"""Turns Python rows and lines of JSON into Arrow tables without changing a value.

Owns what a row given as a dict or a line may look like, and the place that a message names. It opens no files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from rollout_ray.core.errors import DatasetError

_MISFITS = (pa.ArrowException, UnicodeError, OverflowError, RecursionError, TypeError)
# Types into which Arrow turns values of other types without a word: text into bytes, times into days, a local time
# into one of a zone.
_LENIENT = ("binary", "date32", "timestamp")


def read_lines(content: bytes, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line that is not blank; the place names file and line."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_without_duplicates)
        except RecursionError as error:
            raise DatasetError(f"{place}: the JSON is nested too deeply") from error
        except ValueError as error:
            raise DatasetError(f"{place}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{place}: {type(row).__name__} where an object is needed")
        yield place, row


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' stands twice in an object")
    return found


def from_rows(rows: Sequence[Any], place: Callable[[int], str]) -> pa.Table:
    """A table of dicts; a column that only some rows have is null in the others. `place` names a row in messages."""
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DatasetError(f"{place(number)}: {type(row).__name__} where a dict is needed")
        for key in row:
            if not isinstance(key, str) or not _is_utf8(key):
                raise DatasetError(f"{place(number)}: the key {key!a} cannot name a column; give it a name of text")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            array = pa.array(values)
        except _MISFITS as error:
            raise DatasetError(f"{place(_first_misfit(values))}, column '{column}': {error}") from error
        if (changed := first_changed(array, values)) is not None:
            raise DatasetError(
                f"{place(changed)}, column '{column}': the values of this column are of different types, and {array.type} "
                "would change this one; give them one type"
            )
        arrays.append(array)
    return pa.table(arrays, names=columns)


def first_changed(array: pa.Array | pa.ChunkedArray, values: Iterable[Any]) -> int | None:
    """The index of the first value that is another in `array` than it was in Python; None where all are the same."""
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
    return bool(held == given or (held != held and given != given))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_misfit(values: list[Any]) -> int:
    """The index of the first value that no array can hold together with those before it (by bisection)."""
    low, high = 0, len(values)
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except _MISFITS:
            high = middle
    return high - 1
