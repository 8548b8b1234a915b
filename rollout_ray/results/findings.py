"""What a verification found: every disagreement by kind, the ones to be shown, and the report for people.

Owns the limits on what is kept and the wording; verify.py does the checking.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHOWN = 20  # disagreements that are kept and shown in full; all are counted
SHOWN_CHARS = 60  # of a value


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One value that is not what it must be, or with no values a row that is missing, foreign or double. `arm` and `sample`
    are None where a whole question is meant."""

    question_id: str
    arm: str | None
    sample: int | None
    what: str
    stored: Any = None
    recomputed: Any = None

    def __str__(self) -> str:
        where = f"question {_printable(self.question_id)}"
        if self.arm is not None:
            where += f", {_printable(self.arm)}, sample {self.sample}"
        if self.stored is None and self.recomputed is None:
            return f"{where} {self.what}"
        stored, recomputed = _side_by_side(self.stored, self.recomputed)
        return f"{where}: {self.what}: stored {stored}, recomputed {recomputed}"


@dataclass
class Verification:
    """What a verification found. `counts` has all disagreements by kind; `unchecked` sentences on what could not be."""

    path: str
    layout: str
    questions: int = 0
    trajectories: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    unchecked: list[str] = field(default_factory=list)
    rewards_checked: bool = True
    seconds: float = 0.0
    _kept: dict[str, list[Disagreement]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        return not self.counts

    @property
    def disagreements(self) -> list[Disagreement]:
        """At most SHOWN of them, the rare kinds first, so that many of one kind hide none of another."""
        kinds = sorted(self._kept, key=lambda kind: self.counts[kind])
        return [one for kind in kinds for one in self._kept[kind]][:SHOWN]

    def add(self, kind: str, found: Disagreement) -> None:
        """Counts a disagreement in, and keeps it where it may be shown."""
        self.counts[kind] += 1
        kept = self._kept.setdefault(kind, [])
        if len(kept) < SHOWN:
            kept.append(found)

    def lines(self) -> list[str]:
        """The report for people: what disagrees, what could not be checked, and the outcome."""
        size = f"{self.questions} questions, {self.trajectories} trajectories"
        total = self.counts.total()
        lines = [str(found) for found in self.disagreements]
        if total > len(lines):
            lines.append(f"... and {total - len(lines)} more")
        lines += self.unchecked
        if self.agrees:
            checked = "questions and counts" if self.layout == "responses" else "keys, seeds, answers, statuses"
            if self.layout != "responses" and self.rewards_checked:
                checked += ", rewards"
            return [*lines, f"{size}: all {checked} agree ({self.seconds:.1f} s)"]
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.most_common())
        return [*lines, f"{size}: {total} disagreements ({kinds}) ({self.seconds:.1f} s)"]


def _side_by_side(stored: Any, recomputed: Any) -> tuple[str, str]:
    """Both values, each in one line; of long texts what stands around the first difference."""
    if not (isinstance(stored, str) and isinstance(recomputed, str)):
        return _shown(stored, 0), _shown(recomputed, 0)
    first = next((n for n, (a, b) in enumerate(zip(stored, recomputed, strict=False)) if a != b), None)
    begin = max(0, (min(len(stored), len(recomputed)) if first is None else first) - SHOWN_CHARS // 2)
    return _shown(stored, begin), _shown(recomputed, begin)


def _shown(value: Any, begin: int) -> str:
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    if len(value) <= SHOWN_CHARS:
        return repr(value)
    end = begin + SHOWN_CHARS
    return ("..." if begin else "") + repr(value[begin:end]) + ("..." if end < len(value) else "")


def _printable(name: str) -> str:
    """A name as it is, unless it would do something to a terminal."""
    return name if name.isprintable() and len(name) <= 10 * SHOWN_CHARS else _shown(name, 0)
