"""What a Jupyter notebook shows: a finished run as a table, and a run's progress.

Owns the choice of a view where nobody chose one, and the HTML of the summary. Every text in it is escaped.
"""

from __future__ import annotations

import sys
from html import escape
from importlib.util import find_spec

from rollout_ray.core.redaction import escape_controls
from rollout_ray.telemetry.live_view import Live
from rollout_ray.telemetry.progress import Plain, Progress, Silent
from rollout_ray.telemetry.summary import ARM_HEADINGS, Summary, arm_cells, summary_lines


def progress_here() -> Progress:
    """The live view in a notebook, or plain lines where it has no ipywidgets to draw with; elsewhere silence."""
    if "IPython" not in sys.modules:
        return Silent()
    from rich.console import Console

    console = Console()
    if not console.is_jupyter:
        return Silent()
    return Live(console) if find_spec("ipywidgets") else Plain()


def summary_html(summary: Summary, path: str) -> str:
    """The summary by arm as an HTML table, then the rest in sentences and the file's path."""
    body = "".join(_row("td", (name, *arm_cells(arm))) for name, arm in summary.arms.items())
    lines = [f"{summary.questions} questions, {summary.trajectories} trajectories", *summary_lines(summary), path]
    below = "<br>".join(escape(escape_controls(line)) for line in lines)
    return f"<table><thead>{_row('th', ARM_HEADINGS)}</thead><tbody>{body}</tbody></table><p>{below}</p>"


def _row(cell: str, texts: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(escape_controls(text))}</{cell}>" for text in texts) + "</tr>"
