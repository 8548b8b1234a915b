"""Plot a finished run with matplotlib, for notebooks.

Each call counts the merged file anew, with the statistics of the report.
matplotlib is optional: only these functions import it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from rollout_ray.report.statistics import Tallies
from rollout_ray.results.merged_file import MergedFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES = (("right", "#17936b"), ("wrong or no answer", "#d8572a"), ("not graded", "#9aa2b1"))
XLABELS = {"reward": "reward", "tokens": "output tokens"}


def accuracy(path: str) -> Figure:
    """Plot each graded arm's accuracy as a dot with its 95% interval."""
    figure, axes = _empty()
    groups = [(name, group["accuracy"]) for name, group in _counted(path)["groups"].items() if group["accuracy"]]
    names, values = [name for name, _ in groups], [interval for _, interval in groups]
    errors = [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]]
    axes.errorbar([mean for mean, _, _ in values], range(len(values)), xerr=errors, fmt="o", capsize=3, color="#2f5fd0")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, 95% interval")
    return figure


def histogram(path: str, what: str) -> Figure:
    """Plot a histogram of all trajectories, stacked by outcome.

    Args:
        path: Merged file.
        what: "reward" or "tokens" (output length).
    """
    figure, axes = _empty()
    counted = _counted(path)
    edges, counts = counted["edges"][what], counted["all"]["histograms"][what]
    widths = [after - before for before, after in itertools.pairwise(edges)]
    base = [0] * len(widths)
    for (name, colour), series in zip(OUTCOMES, counts, strict=True):
        if any(series):
            axes.bar(edges[:-1], series, widths, bottom=base, align="edge", label=name, color=colour)
            base = [low + count for low, count in zip(base, series, strict=True)]
    axes.set_xlabel(XLABELS[what])
    axes.set_ylabel("trajectories")
    if any(base):
        axes.legend()
    return figure


def _empty() -> tuple[Figure, Axes]:
    """Return an empty figure that the notebook displays exactly once.

    pyplot makes the figure, so the notebook can render it.
    Closing the figure stops pyplot from showing it a second time.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("matplotlib is not installed, and the plots need it. Run: pip install matplotlib") from error
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    pyplot.close(figure)
    return figure, axes


def _counted(path: str) -> dict[str, Any]:
    with MergedFile(path) as merged:
        merged.require_scores()
        tallies = Tallies([arm.name for arm in merged.description.arms])
        for _, stored in merged.batches():
            for one in stored:
                tallies.add(one.trajectories, one.scores[0]["s_wm"])
    return tallies.to_dict()
