"""Display runs in a Jupyter notebook: the progress of a run, and a finished run as a table.

Every text in the HTML is escaped.
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
    """Return the live view in a notebook, plain lines without ipywidgets, and no output elsewhere."""
    if "IPython" not in sys.modules:
        return Silent()
    from rich.console import Console

    console = Console()
    if not console.is_jupyter:
        return Silent()
    return Live(console) if find_spec("ipywidgets") else Plain()


def summary_html(summary: Summary, path: str) -> str:
    """Return the summary by arm as an HTML table, then sentences and the path of the file."""
    body = "".join(_row("td", (name, *arm_cells(arm))) for name, arm in summary.arms.items())
    lines = [f"{summary.questions} questions, {summary.trajectories} trajectories", *summary_lines(summary), path]
    below = "<br>".join(escape(escape_controls(line)) for line in lines)
    above = f"<p>{escape(escape_controls(summary.reward_rule))}</p>" if summary.reward_rule else ""
    return f"{above}<table><thead>{_row('th', ARM_HEADINGS)}</thead><tbody>{body}</tbody></table><p>{below}</p>"


def _row(cell: str, texts: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(escape_controls(text))}</{cell}>" for text in texts) + "</tr>"
