"""Show a run on the console: its progress while it goes on, and its summary at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollout_ray.core.redaction import escape_controls

if TYPE_CHECKING:
    from rollout_ray.telemetry.progress import Progress
    from rollout_ray.telemetry.summary import Summary


def view(quiet: bool) -> tuple[Any, Progress]:
    """Return a console, and the progress that suits it."""
    from rich.console import Console

    from rollout_ray.telemetry.live_view import Live
    from rollout_ray.telemetry.progress import Plain, Silent

    console = Console()
    if quiet:
        return console, Silent()
    return console, Live(console) if console.is_terminal else Plain()


def print_summary(console: Any, summary: Summary, path: str) -> None:
    """Print what is paid, the table and lines of a run's summary, then the path of its file."""
    from rollout_ray.telemetry.summary import summary_lines, summary_table

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(summary.reward_rule)
    console.print(summary_table(summary))
    for line in [*summary_lines(summary), escape_controls(path)]:
        say(line)
