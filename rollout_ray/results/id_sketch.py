"""Which ids a file must hold, in a few kB: enough to name the few that are missing or too many.

Owns this summary of a set of ids; it reads no files. Every id falls into one of CELLS cells; a cell holds how many ids it
got and their bytes xor-ed, each followed by its hash. Where two sets differ in one id of a cell, the summaries differ there
by that id's bytes and hash; where they differ in several, the hash does not fit what the bytes spell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

CELLS = 64
HASH = 8  # bytes of the hash
WIDTH = 64  # bytes of an id that a cell holds; of a longer one it holds the hash alone, so that it is noticed but not named


@dataclass(frozen=True)
class Difference:
    """Ids that were expected and not found, and found but not expected; `unnamed` counts further cells that differ."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unnamed: int


@dataclass
class IdSketch:
    """The summary of a set of ids; the order in which they are added does not matter."""

    _counts: list[int] = field(default_factory=lambda: [0] * CELLS)
    _sums: list[int] = field(default_factory=lambda: [0] * CELLS)

    @classmethod
    def of(cls, ids: Iterable[str]) -> Self:
        id_sketch = cls()
        for question_id in ids:
            id_sketch.add(question_id)
        return id_sketch

    def add(self, question_id: str) -> None:
        """Counts in one more id."""
        name = question_id.encode("utf-8", "surrogatepass")
        digest = _digest(name)
        cell = digest[0] % CELLS
        self._counts[cell] += 1
        self._sums[cell] ^= int.from_bytes((name if len(name) <= WIDTH else b"").ljust(WIDTH, b"\0") + digest)

    def to_text(self) -> str:
        """One line of at most 12 kB and some digits, which `from_text` reads."""
        return " ".join(f"{count}:{total:x}" for count, total in zip(self._counts, self._sums, strict=True))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The roster of a line. Raises ValueError where it is none."""
        cells = [cell.split(":") for cell in text.split(" ")]
        if len(cells) != CELLS:
            raise ValueError(f"{len(cells)} cells where {CELLS} are needed")
        return cls([int(count) for count, _ in cells], [int(total, 16) for _, total in cells])

    def compare(self, found: IdSketch) -> Difference:
        """How `found` differs from this one, the expected."""
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
    """The one id that a difference of sums stands for; None where it stands for several, or for one that is too long."""
    whole = total.to_bytes(WIDTH + HASH)
    name = whole[:WIDTH].rstrip(b"\0")
    return name.decode() if _digest(name) == whole[WIDTH:] else None
