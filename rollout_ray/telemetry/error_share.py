"""End a run whose grades or rewards fail too often."""

from __future__ import annotations

from itertools import islice

from rollout_ray.core.errors import TooManyErrors
from rollout_ray.core.redaction import escape_controls
from rollout_ray.telemetry.summary import Summary

# From here on a session is judged. A failure costs a whole question, so that one bad question among few means little.
ENOUGH_QUESTIONS = 50
ENOUGH_TRAJECTORIES = 200


def refuse_failing_session(session: Summary, before: int, most: float) -> None:
    """Raise TooManyErrors if functions of the user fail in this session for more than the share `most` of the run so far.

    Args:
        session: The trajectories of this session.
        before: How many trajectories earlier sessions committed. The end of the run judges their failures.
        most: The share that may fail, from 0 to 1.
    """
    if session.questions < ENOUGH_QUESTIONS or session.trajectories < ENOUGH_TRAJECTORIES:
        return
    remedy = "Correct the function; the same command goes on, and `rollout rescore` then rewards every row"
    _refuse(session, before + session.trajectories, most, remedy)


def refuse_failures(summary: Summary, most: float, remedy: str) -> None:
    """Raise TooManyErrors if functions of the user failed for more than the share `most` of all trajectories.

    Args:
        summary: All trajectories.
        most: The share that may fail, from 0 to 1.
        remedy: What to do, as a sentence without its full stop.
    """
    _refuse(summary, summary.trajectories, most, remedy)


def _refuse(summary: Summary, count: int, most: float, remedy: str) -> None:
    failed = summary.failures.total()
    if failed <= most * count:
        return
    reasons = "; ".join(map(escape_controls, islice(summary.failures, 3)))
    allowed = f"scoring.max_error_share allows {most:g} of them"
    raise TooManyErrors(f"{failed} of {count} trajectories have no reward, and {allowed}: {reasons}. {remedy}")
