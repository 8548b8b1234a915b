"""A reward of one's own: a correct answer is worth 1, less a little for each token beyond the shortest correct one."""

from __future__ import annotations

from collections.abc import Sequence

from rollout_ray.core.records import Question, Trajectory

PER_TOKEN = 0.001


def short_and_right(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """One reward a trajectory, in their order; None where it cannot be told whether the answer is right."""
    shortest = min((t.num_tokens for t in trajectories if t.correct), default=0)
    return [
        None if t.correct is None else 1.0 - PER_TOKEN * (t.num_tokens - shortest) if t.correct else 0.0
        for t in trajectories
    ]
