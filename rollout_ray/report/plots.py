"""Figures of a finished run, for notebooks. matplotlib draws them where it is installed; nothing else needs it.

Owns the figures. The numbers are those of the report (tallies.py), counted anew from the merged file at each call.
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
    """Accuracy by arm, a dot and its 95% interval each; arms that were not graded are left out."""
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
    """Rewards (`what` is reward) or output lengths (tokens) of all trajectories, stacked by outcome."""
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
    """A figure that pyplot made, so that a notebook knows how to show it, and has let go, so that it shows it once."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("matplotlib draws the figures and is not installed; pip install matplotlib") from error
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
