"""Draw the live view of a run on a terminal: a bar, engines, arms, and score statuses.

The layout fits the width and height of the terminal. The driver's thread draws it, at most four times a second.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rollout_ray.core.redaction import escape_controls
from rollout_ray.telemetry.arm_summary import ArmSummary
from rollout_ray.telemetry.progress import amounts, duration, per_arm
from rollout_ray.telemetry.run_view import EngineView, RunView

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

SIDE_BY_SIDE = 116  # width from which engines and arms are side by side
FEWEST_LINES = 3  # per table
REDRAW_S = 0.25
STYLES = {
    "running": "green",
    "waiting": "dim",
    "starting": "yellow",
    "idle": "dim",
    "leaving": "yellow",
    "dead": "red",
    "retired": "red",
}


class Live:
    """Draws a run on `console`."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive

        # Log lines are drawn above the view, unless stderr goes elsewhere.
        self._live = RichLive(
            console=console, auto_refresh=False, transient=True, redirect_stderr=sys.stderr.isatty(), redirect_stdout=False
        )
        self._drawn_at = -REDRAW_S

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def update(self, view: RunView) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            self._live.update(Screen(view), refresh=True)


class Screen:
    """The drawing of a run, in the available width and height."""

    def __init__(self, view: RunView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        view, width = self._view, options.max_width
        arms = _arms(view, width)
        engines, beside = view.engines, width >= SIDE_BY_SIDE
        foot = list(_foot(view))
        left = options.size.height - 4 - len(foot)  # below the head, above the last line of the terminal
        if beside:
            most = max(FEWEST_LINES, left - 2)
            tables = Table.grid(padding=(0, 6))
            tables.add_row(_engines(engines, most), *([arms] if arms.row_count else []))
            yield from (*_head(view, width), "", tables)
        else:
            most = max(FEWEST_LINES, left - 4 - arms.row_count)
            yield from (*_head(view, width), "", _engines(engines, most))
            if arms.row_count:
                yield from ("", arms)
        yield from foot


def _head(view: RunView, width: int) -> Iterable[RenderableType]:
    """Return the bar with the time left, and a line of amounts."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done, total = view.ended_samples, view.total_samples
    clock = duration(time.monotonic() - view.began)
    if (left := view.seconds_left()) is not None:
        clock = f"{clock}, {duration(left)} left"
    line = Table.grid(padding=(0, 2))
    line.add_row(
        Text(f"{done / total:.0%}" if total else "", style="bold"),
        ProgressBar(total=max(1, total), completed=done, width=max(10, width - len(clock) - 12)),
        Text(clock),
    )
    yield line
    yield Text(amounts(view), overflow="ellipsis", no_wrap=True)


def _engines(engines: dict[str, EngineView], most: int) -> Table:
    from rich.text import Text

    table = _table("engine", "state", "running", "waiting", "tokens/s", "KV cache")
    fitting = len(engines) if len(engines) <= most else most - 1
    for name, engine in list(engines.items())[:fitting]:
        stats = engine.stats
        state = f"{engine.state} ({engine.restarts} restarts)" if engine.restarts > 1 else engine.state
        state = f"{engine.state} (restarted)" if engine.restarts == 1 else state
        numbers = (f"{stats.running:,}", f"{stats.waiting:,}", f"{engine.rate:,.0f}", f"{stats.kv_use:.0%}")
        begun = engine.state in ("running", "leaving")
        table.add_row(
            Text(escape_controls(name)), Text(state, STYLES.get(engine.state, "")), *(numbers if begun else ("",) * 4)
        )
    if rest := list(engines.values())[fitting:]:
        states = Counter(engine.state for engine in rest)
        running, waiting = (sum(getattr(e.stats, n) for e in rest) for n in ("running", "waiting"))
        words = ", ".join(f"{count} {state}" for state, count in states.most_common())
        rate = sum(engine.rate for engine in rest)
        table.add_row(f"{len(rest)} more", words, f"{running:,}", f"{waiting:,}", f"{rate:,.0f}", "", style="dim")
    return table


def _arms(view: RunView, width: int) -> Table:
    from rich.text import Text

    table = _table("arm", "done", "accuracy", "reward", "tokens", "truncated")
    longest = max(12, width // 3)
    for name, count in view.arms().items():
        label = Text(escape_controls(name), overflow="ellipsis", no_wrap=True)
        label.truncate(longest, overflow="ellipsis")
        table.add_row(label, *per_arm(count, view.summary.arms.get(name, ArmSummary())))
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        numeric = number > (1 if headings[1] == "state" else 0)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    return table


def _foot(view: RunView) -> Iterable[RenderableType]:
    from rich.text import Text

    counts = view.summary.score_status.most_common()
    if counts:
        yield ""
        text = "score status: " + ", ".join(f"{name} {count:,}" for name, count in counts)
        yield Text(text, overflow="ellipsis", no_wrap=True)
