"""Write an export's file: the ending of its name chooses the form, and its path or URI the place.

A file appears complete or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa

from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.data.cells import NotText
from rollout_ray.storage.folder import write_file
from rollout_ray.storage.paths import split_path

Compression = Literal["gzip", "zstd"]
Writer = Callable[[IO[bytes]], Any]
LINES = (".jsonl", ".ndjson", ".json")
ENDINGS: dict[str, tuple[bool, Compression | None]] = {  # ending -> (parquet or JSON lines, compression)
    ".parquet": (True, None),
    **dict.fromkeys(LINES, (False, None)),
    **{f"{ending}.gz": (False, "gzip") for ending in LINES},
    **{f"{ending}.zst": (False, "zstd") for ending in LINES},
}


@dataclass(frozen=True)
class Target:
    """A file to write, by path or URI."""

    path: str
    is_parquet: bool
    compression: Compression | None

    def write(self, write: Writer) -> None:
        """Write the file with the content that `write` gives its stream.

        Raises:
            LedgerError: The disk or store refuses.
        """
        try:
            write_file(self.path, write if self.compression is None else _compressed(write, self.compression))
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be written: {error}. Give another place.") from error


def parse_target(path: str | Path) -> Target:
    """Return the target with this path or URI. Capitals in the ending do not matter.

    Raises:
        ConfigError: The ending is not in ENDINGS.
    """
    _, name = split_path(str(path))
    for ending, (is_parquet, compression) in ENDINGS.items():
        if name.lower().endswith(ending):
            return Target(str(path), is_parquet, compression)
    raise ConfigError(
        f"{path} has no ending that export can write. Give a name that ends in .parquet, .jsonl, .jsonl.gz or .jsonl.zst."
    )


def write_lines(rows: Iterable[dict[str, Any]], stream: IO[bytes]) -> None:
    """Write one JSON object a line. Values that JSON cannot represent become null."""
    for row in rows:
        stream.write(json.dumps(_json_value(row), ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n")


def _compressed(write: Writer, compression: Compression) -> Writer:
    def compress(stream: IO[bytes]) -> None:
        with pa.CompressedOutputStream(pa.PythonFile(_KeptOpen(stream), mode="w"), compression) as compressed:
            write(compressed)

    return compress


class _KeptOpen:
    """A stream that ignores `close`, because the stream's owner still has to sync it."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, content: bytes) -> int:
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        pass


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None if isinstance(value, NotText) else value
