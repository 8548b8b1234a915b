"""Say what a spent budget reached, and refuse one that would reach nothing for ever.

Only whole questions are saved. A budget that ends before the first of them is complete would begin the same work again.
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


def spent_words(view: RunView, budget: str | None, done: str) -> str:
    """Return the message of a session that its budget ended.

    Args:
        view: The state of the session.
        budget: The budget as the user gave it.
        done: How many questions are saved, in words.
    """
    if view.committed:
        return f"the budget of {budget} is spent with {done}; the same command goes on for as long again"
    needed = needed_seconds(view)
    longer = "a longer --budget" if needed is None else f"a --budget of about {math.ceil(needed)}s for all of them"
    return (
        f"the budget of {budget} is spent with {done}. No question became complete: {view.ended_samples} of "
        f"{view.total_samples} trajectories had ended, and only whole questions are saved. Give {longer}, or fewer samples"
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
    if seconds <= last.get("budget_seconds", 0.0):
        needed = last.get("needed_seconds")
        longer = "a longer --budget" if needed is None else f"a --budget of about {math.ceil(needed)}s"
        raise ConfigError(
            f"the last session spent {last['budget_seconds']:g} s and no question became complete. A budget of {budget} "
            f"would do the same. Give {longer}, or none"
        )
