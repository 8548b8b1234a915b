"""Parse the rows of JSON files: one object a line, or one array of objects.

Each row has a place, file and line, for error messages. Opens no files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from rollout_ray.core.errors import DatasetError

_SPACE = " \t\n\r"


class JsonLine(NamedTuple):
    """One object of a file. `place` names file and line; `size` is its length in the file."""

    place: str
    size: int
    row: dict[str, Any]


def read_objects(stream: IO[bytes], path: str) -> Iterator[JsonLine]:
    """Parse the file as an array if it begins with a bracket and has the ending .json, else as lines.

    Raises:
        DatasetError: A row is not a JSON object, or repeats a key.
    """
    lines: Iterable[bytes] = stream
    if ".json" in path.lower() and ".jsonl" not in path.lower():
        first = stream.readline()
        if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _read_array(first + stream.read(), path)
            return
        lines = _chained(first, stream)
    yield from read_lines(lines, path)


def _chained(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def read_lines(lines: Iterable[bytes], path: str) -> Iterator[JsonLine]:
    """Parse JSON lines and skip blank ones.

    Args:
        lines: The lines of the file, such as an open binary file.
        path: Name of the file for error messages.

    Raises:
        DatasetError: A line is not a JSON object, or repeats a key.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_without_duplicates)
        except RecursionError as error:
            raise DatasetError(f"{place}: the JSON is nested too deeply. Flatten it") from error
        except ValueError as error:
            raise DatasetError(f"{place}: not JSON ({error}). Write one JSON object per line") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{place}: {type(row).__name__} where an object is needed. Write one JSON object per line")
        yield JsonLine(place, len(line), row)


def _read_array(content: bytes, path: str) -> Iterator[JsonLine]:
    """Parse one object of the array at a time: the text is held whole, its rows are not."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates)
    place = path
    try:
        text = content.decode("utf-8-sig")
        at = _after_space(text, text.index("[") + 1)
        number = 0
        while text[at] != "]":
            place = f"{path}, row {number} (from 0)"
            row, end = decoder.raw_decode(text, at)
            if not isinstance(row, dict):
                raise DatasetError(f"{place}: {type(row).__name__} where an object is needed. Give an array of objects")
            yield JsonLine(place, end - at, row)
            number += 1
            at = _after_space(text, end)
            if text[at] == ",":
                at = _after_space(text, at + 1)
            elif text[at] != "]":
                raise ValueError(f"{text[at]!r} where a comma is needed")
        if _after_space(text, at + 1) < len(text):
            raise ValueError("text follows the array")
    except RecursionError as error:
        raise DatasetError(f"{place}: the JSON is nested too deeply. Flatten it") from error
    except (ValueError, IndexError) as error:
        reason = "the array does not end" if isinstance(error, IndexError) else error
        raise DatasetError(f"{place}: not JSON ({reason}). Write one array of objects, or one object per line") from error


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' stands twice in an object")
    return found
