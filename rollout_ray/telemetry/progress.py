"""Report the progress of a run: nothing, or one line now and then.

The live view on a terminal is in live_view.py. A missing terminal never fails a run.
"""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Protocol, Self

from rollout_ray.core.redaction import escape_controls
from rollout_ray.telemetry.arm_summary import ArmSummary
from rollout_ray.telemetry.engine_stats import ArmCount
from rollout_ray.telemetry.run_view import RunView

PLAIN_INTERVAL_S = 10.0
LONG_INTERVAL_S = 60.0
LONG_RUN_S = 600.0
MOST_ENGINES = 8  # that are listed by name


class Progress(Protocol):
    """Displays a run. `update` is called often, and decides when to display something."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None: ...

    def update(self, view: RunView) -> None: ...


class Silent:
    """Displays nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def update(self, view: RunView) -> None:
        return None


class Plain(Silent):
    """Prints one line every ten seconds, and every minute after ten minutes, for logs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def update(self, view: RunView) -> None:
        now = time.monotonic()
        if now - self._last < (PLAIN_INTERVAL_S if now - view.began < LONG_RUN_S else LONG_INTERVAL_S):
            return
        self._last = now
        print(plain_line(view), flush=True)


def plain_line(view: RunView) -> str:
    """Return the state of a run on one line."""
    done = f"{view.ended_samples:,}/{view.total_samples:,} trajectories"
    if view.total_samples:
        done += f" ({view.ended_samples / view.total_samples:.0%})"
    left = view.seconds_left()
    if len(view.engines) <= MOST_ENGINES:
        engines = ", ".join(f"{escape_controls(name)} {engine.state}" for name, engine in view.engines.items())
    else:
        counts = Counter(engine.state for engine in view.engines.values())
        engines = ", ".join(f"{count} engines {state}" for state, count in counts.most_common())
    parts = [done, *([] if left is None else [f"{duration(left)} left"]), amounts(view), engines]
    arms = view.summary.arms.values()
    if graded := sum(arm.graded for arm in arms):
        parts.append(f"accuracy {sum(arm.correct for arm in arms) / graded:.1%}")
    if rewarded := sum(arm.rewarded for arm in arms):
        parts.append(f"reward {sum(arm.reward_sum for arm in arms) / rewarded:.3f}")
    return "; ".join(parts)


def amounts(view: RunView) -> str:
    """Return the saved questions, the tokens, the speed, and the queues."""
    parts = [f"{view.before + view.committed:,}/{view.total:,} questions"]
    if view.tokens:
        parts.append(f"{view.tokens:,} tokens")
    parts.append(f"{view.rate:,.0f} tokens/s")
    if view.pending:
        parts.append(f"{view.pending:,} queued")
    if view.unscored:
        parts.append(f"{view.unscored:,} scoring")
    if view.restarts:
        parts.append(f"{view.restarts} restart{'s' if view.restarts > 1 else ''}")
    return ", ".join(parts)


def per_arm(count: ArmCount, scored: ArmSummary) -> tuple[str, str, str, str, str]:
    """Return done, accuracy, mean reward, mean length and truncated share of an arm, as printed.

    Args:
        count: Finished samples; at least one.
        scored: Those whose questions are saved.
    """
    accuracy = "-" if scored.accuracy is None else f"{scored.accuracy:.1%}"
    reward = "-" if scored.mean_reward is None else f"{scored.mean_reward:.3f}"
    tokens = f"{count.tokens / count.samples:,.0f}"
    return f"{count.samples:,}", accuracy, reward, tokens, f"{count.truncated / count.samples:.0%}"


def duration(seconds: float) -> str:
    """Format seconds as 12 s, 3:05 min or 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
