"""Summarize a set of ids in a few kB, to name the few ids that a file lacks or has too many.

Each id falls into one of CELLS cells. A cell holds the number of its ids, and the xor of their bytes, each followed by
its hash. If two sets differ in one id of a cell, the xor of both sums spells that id and its hash. If they differ in
several ids, the hash does not match the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

CELLS = 64
HASH = 8  # bytes of the hash
WIDTH = 64  # longest id in bytes that a cell can spell; a longer id is noticed, but not named


@dataclass(frozen=True)
class Difference:
    """Missing ids and unexpected ids. `unnamed` counts the other cells that differ."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unnamed: int


@dataclass
class IdSketch:
    """The summary of a set of ids. The order of additions does not matter."""

    _counts: list[int] = field(default_factory=lambda: [0] * CELLS)
    _sums: list[int] = field(default_factory=lambda: [0] * CELLS)

    @classmethod
    def of(cls, ids: Iterable[str]) -> Self:
        """Return the sketch of these ids."""
        id_sketch = cls()
        for question_id in ids:
            id_sketch.add(question_id)
        return id_sketch

    def add(self, question_id: str) -> None:
        """Add one id."""
        name = question_id.encode("utf-8", "surrogatepass")
        digest = _digest(name)
        cell = digest[0] % CELLS
        self._counts[cell] += 1
        self._sums[cell] ^= int.from_bytes((name if len(name) <= WIDTH else b"").ljust(WIDTH, b"\0") + digest)

    def to_text(self) -> str:
        """Return one line of about 12 kB that `from_text` reads."""
        return " ".join(f"{count}:{total:x}" for count, total in zip(self._counts, self._sums, strict=True))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse the line of a sketch. Raise ValueError if it is malformed."""
        cells = [cell.split(":") for cell in text.split(" ")]
        if len(cells) != CELLS:
            raise ValueError(f"{len(cells)} cells where {CELLS} are needed")
        return cls([int(count) for count, _ in cells], [int(total, 16) for _, total in cells])

    def compare(self, found: IdSketch) -> Difference:
        """Return how `found` differs from this sketch of the expected ids."""
        missing: list[str] = []
        extra: list[str] = []
        unnamed = 0
        for cell in range(CELLS):
            more = self._counts[cell] - found._counts[cell]
            rest = self._sums[cell] ^ found._sums[cell]
            name = _read_name(rest) if abs(more) == 1 else None
            if name is not None:
                (missing if more == 1 else extra).append(name)
            else:
                unnamed += bool(more or rest)
        return Difference(tuple(missing), tuple(extra), unnamed)


def _digest(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=HASH).digest()


def _read_name(total: int) -> str | None:
    """Return the id that a difference of sums spells, or None if it mixes several ids or one is too long."""
    whole = total.to_bytes(WIDTH + HASH)
    name = whole[:WIDTH].rstrip(b"\0")
    return name.decode() if _digest(name) == whole[WIDTH:] else None
