"""Count why trajectories are errors, and decide whether too many are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from rollout_ray.core.redaction import escape_controls, shorten

TOO_MANY = 0.5  # share of the trajectories
MOST_REASONS = 50  # that are kept; the text of an error may hold a part of its row
_LONGEST = 200  # characters
_NUMBER = re.compile(r"\d+")


def count_reasons(reasons: Iterable[str | None]) -> Counter[str]:
    """Count reasons. N stands for each number, so reasons that differ in numbers alone count as one."""
    return Counter(_NUMBER.sub("N", shorten(reason, _LONGEST)) for reason in reasons if reason)


def add_reasons(counts: Counter[str], more: Counter[str]) -> None:
    """Add counts, of at most MOST_REASONS reasons. The others count as "another reason"."""
    for reason, count in more.items():
        known = reason in counts or len(counts) < MOST_REASONS
        counts[reason if known else "another reason"] += count


def errors_sentence(errors: int, trajectories: int, reasons: Counter[str]) -> str:
    """Return how many trajectories are errors, with the three most frequent reasons."""
    shown = "; ".join(f"{escape_controls(reason)} ({count})" for reason, count in reasons.most_common(3))
    return f"{errors} of {trajectories} trajectories are errors{f': {shown}' if shown else ''}"
