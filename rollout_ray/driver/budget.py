"""Say what a spent budget reached, and refuse one that would reach nothing for ever.

Finished trajectories are saved. A budget that ends before the first of them would begin the same work again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rollout_ray.core.errors import ConfigError
from rollout_ray.telemetry.run_view import RunView


def needed_seconds(view: RunView) -> float | None:
    """Return the seconds that this session would have taken to complete everything. None if that is unknown."""
    left = view.seconds_left()
    return None if left is None else time.monotonic() - view.began + left


def spent_words(view: RunView, budget: str | None, done: str, saved: int) -> str:
    """Return the message of a session that its budget ended.

    Args:
        view: The state of the session.
        budget: The budget as the user gave it.
        done: How many questions are saved, in words.
        saved: Trajectories of other questions that this session saved.
    """
    if view.committed or saved:
        more = f", and {saved} trajectories of other questions" if saved else ""
        return f"the budget of {budget} is spent with {done}{more}; the same command goes on for as long again"
    needed = needed_seconds(view)
    longer = "a longer --budget" if needed is None else f"a --budget of about {math.ceil(needed)}s for all of them"
    return (
        f"the budget of {budget} is spent with {done}. Nothing was saved: {view.ended_samples} of {view.total_samples} "
        f"trajectories had ended. Give {longer}, or a smaller max_tokens"
    )


def refuse_a_budget_that_saved_nothing(
    events: Iterable[Mapping[str, Any]], budget: str | None, seconds: float | None
) -> None:
    """Raise ConfigError if the last session had as long a budget, and saved nothing.

    Args:
        events: Events of the run, oldest first.
        budget: The budget as the user gives it now.
        seconds: The same in seconds. None: no limit.
    """
    last = next((event for event in reversed(list(events)) if event["event"] == "stopped"), None)
    if last is None or seconds is None or not last.get("spent") or last.get("committed"):
        return
    if last.get("saved_samples", 1):  # version 0.1.0 saved no samples, and this one does
        return
    if seconds <= last.get("budget_seconds", 0.0):
        needed = last.get("needed_seconds")
        longer = "a longer --budget" if needed is None else f"a --budget of about {math.ceil(needed)}s"
        raise ConfigError(
            f"the last session spent {last['budget_seconds']:g} s and no trajectory ended. A budget of {budget} "
            f"would do the same. Give {longer}, or none"
        )
