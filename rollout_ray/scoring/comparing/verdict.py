"""Define the decision of a rule: a status, or tasks for the grading process."""

from __future__ import annotations

from dataclasses import dataclass

from rollout_ray.core.records import ScoreStatus


@dataclass(frozen=True, slots=True)
class Decision:
    """The rule that decided, and a status or tasks. The answer is correct if one task is."""

    rule: str
    status: ScoreStatus | None = None
    tasks: tuple[str, ...] = ()


def settled(right: bool, rule: str) -> Decision:
    """Return a decision that needs no task."""
    return Decision(rule, "correct" if right else "incorrect")
