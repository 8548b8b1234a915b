"""Example of a custom reward: 1 for a correct answer, less a little for each extra token.

Extra tokens are those beyond the shortest correct answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from rollout_ray.core.records import Question, Trajectory

PER_TOKEN = 0.001


def short_and_right(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """Return one reward a trajectory, in their order, or None if its correctness is unknown."""
    shortest = min((t.num_tokens for t in trajectories if t.correct), default=0)
    return [
        None if t.correct is None else 1.0 - PER_TOKEN * (t.num_tokens - shortest) if t.correct else 0.0
        for t in trajectories
    ]
