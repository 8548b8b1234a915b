"""End a run whose grades or rewards fail too often."""

from __future__ import annotations

from itertools import islice

from rollout_ray.core.errors import TooManyErrors
from rollout_ray.core.redaction import escape_controls
from rollout_ray.telemetry.summary import Summary

ENOUGH = 200  # trajectories from which the share is judged; at the end of the run it is judged in any case


def refuse_failures(summary: Summary, most: float, *, last: bool) -> None:
    """Raise TooManyErrors if functions of the user failed for more than the share `most` of the trajectories.

    Args:
        summary: The trajectories so far.
        most: The share that may fail, from 0 to 1.
        last: Whether no more trajectories come.
    """
    failed = summary.failures.total()
    if failed <= most * summary.trajectories or (summary.trajectories < ENOUGH and not last):
        return
    reasons = "; ".join(map(escape_controls, islice(summary.failures, 3)))
    raise TooManyErrors(
        f"{failed} of {summary.trajectories} trajectories have no reward, and scoring.max_error_share allows {most:g} of "
        f"them: {reasons}. Correct the function; the same command goes on, and `rollout rescore` then rewards every row"
    )
