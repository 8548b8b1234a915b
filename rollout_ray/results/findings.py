"""Collect the disagreements that a verification finds, and print them.

All disagreements are counted; a limited number is kept. The checks are in verify.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_PRINTED = 20  # disagreements that are printed in full
MAX_VALUE_CHARS = 60


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One wrong value; or, without values, a row that is missing, unexpected or doubled.

    `arm` and `sample` are None for a whole question. `what` names the value or the problem.
    """

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
    """Result of a verification.

    Attributes:
        path: The verified file.
        layout: Layout of the file.
        questions: Number of questions in the file.
        trajectories: Number of trajectories in the file.
        counts: All disagreements by kind.
        unchecked: Sentences on checks that were not possible.
        rewards_checked: Whether rewards were recomputed.
        seconds: Duration of the verification.
    """

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
        """Return at most MAX_PRINTED disagreements, rare kinds first, so that a frequent kind hides no other."""
        kinds = sorted(self._kept, key=lambda kind: self.counts[kind])
        return [one for kind in kinds for one in self._kept[kind]][:MAX_PRINTED]

    def add(self, kind: str, found: Disagreement) -> None:
        """Count a disagreement, and keep it if it may be printed."""
        self.counts[kind] += 1
        kept = self._kept.setdefault(kind, [])
        if len(kept) < MAX_PRINTED:
            kept.append(found)

    def lines(self) -> list[str]:
        """Return the printed report: disagreements, unchecked values, and the outcome."""
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
    """Return both values, each on one line. Long texts are cut to the part around the first difference."""
    if not (isinstance(stored, str) and isinstance(recomputed, str)):
        return _display(stored, 0), _display(recomputed, 0)
    first = next((n for n, (a, b) in enumerate(zip(stored, recomputed, strict=False)) if a != b), None)
    begin = max(0, (min(len(stored), len(recomputed)) if first is None else first) - MAX_VALUE_CHARS // 2)
    return _display(stored, begin), _display(recomputed, begin)


def _display(value: Any, begin: int) -> str:
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    if len(value) <= MAX_VALUE_CHARS:
        return repr(value)
    end = begin + MAX_VALUE_CHARS
    return ("..." if begin else "") + repr(value[begin:end]) + ("..." if end < len(value) else "")


def _printable(name: str) -> str:
    """Return the name, escaped if it holds control characters."""
    return name if name.isprintable() and len(name) <= 10 * MAX_VALUE_CHARS else _display(name, 0)
