"""Match two lists of values in any order."""

from __future__ import annotations

from collections.abc import Sequence


def matched(known: Sequence[Sequence[bool]]) -> bool:
    """Return whether every row can have a column of its own where it holds: a perfect matching."""
    owner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, holds in enumerate(known[row]):
            if holds and column not in seen:
                seen.add(column)
                if column not in owner or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(known)))
