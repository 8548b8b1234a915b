"""Shows a run while it goes on: a live view on a terminal, a line now and then elsewhere.

Owns what a person sees of the driver's state. It changes nothing and never fails a run for want of a terminal.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rollout_ray.redaction import shown
from rollout_ray.view import RunView

if TYPE_CHECKING:
    from rich.console import Console, Group

PLAIN_INTERVAL_S = 10.0


class Progress(Protocol):
    """Watches a run. `update` is called often; it decides itself when to show something."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None: ...

    def update(self, view: RunView) -> None: ...


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def update(self, view: RunView) -> None:
        return None


class Plain(Silent):
    """Prints one line every ten seconds, for logs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def update(self, view: RunView) -> None:
        if time.monotonic() - self._last < PLAIN_INTERVAL_S:
            return
        self._last = time.monotonic()
        states = ", ".join(f"{shown(name)} {engine.state}" for name, engine in view.engines.items())
        print(
            f"{view.before + view.committed}/{view.total} questions committed, {view.generated_draws} trajectories drawn, "
            f"{view.tokens_per_second:,.0f} tokens/s; {states}",
            flush=True,
        )


class Live(Silent):
    """A live view: an overall bar, a line an engine and a line an arm."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("trajectories"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("trajectories", total=None)
        self._live = RichLive(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def update(self, view: RunView) -> None:
        self._bar.update(self._task, total=view.total_draws, completed=view.generated_draws)
        self._live.update(self._render(view))

    def _render(self, view: RunView) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        engines = Table("engine", "state", "in flight", "drawn", "tokens", box=None, pad_edge=False)
        for name, engine in view.engines.items():
            engines.add_row(Text(shown(name)), engine.state, str(engine.unfinished), str(engine.draws), str(engine.tokens))
        arms = Table("arm", "done", "accuracy", "mean reward", "mean tokens", box=None, pad_edge=False)
        for name, arm in view.summary.arms.items():
            accuracy = "-" if arm.accuracy is None else f"{100 * arm.accuracy:.0f}%"
            reward = "-" if arm.mean_reward is None else f"{arm.mean_reward:.3f}"
            arms.add_row(Text(shown(name)), str(arm.trajectories), accuracy, reward, f"{arm.mean_tokens:.0f}")
        heading = f"{view.before + view.committed}/{view.total} questions committed, {view.tokens_per_second:,.0f} tokens/s"
        return Group(self._bar, heading, engines, arms)
