"""Count a report's statistics by arm, by question and over all trajectories.

The result is JSON. estimators.py has the formulas and intervals.
Memory holds two numbers a trajectory and one a question, never a text.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from rollout_ray.report.estimators import Clustered, majority_curve, pass_at_k
from rollout_ray.scoring.normal_form import votes

BINS = 30  # approximate number of bars in a histogram
VOTERS = 64  # samples of a question that majority@k counts; the exact count over many more takes seconds
EVERY_K = 16  # a curve has every k up to here, and powers of two beyond
OUTCOMES = ("right", "wrong", "unknown")
_OUTCOME = {True: 0, False: 1, None: 2}


def curve_ks(samples: int) -> list[int]:
    """Return the k values of a curve: each up to 16 samples, else powers of two and `samples`."""
    if samples <= EVERY_K:
        return list(range(1, samples + 1))
    return sorted({*(1 << n for n in range(samples.bit_length())), samples})


def nice_edges(low: float, high: float, about: int = BINS, whole: bool = False) -> list[float]:
    """Return the edges of equal histogram bins that cover [low, high].

    Edges are multiples of 1, 2 or 5 times a power of ten.

    Args:
        about: Approximate number of bins.
        whole: The values are integers. Bins are then at least 1 wide.
    """
    if not high - low > 1e-6 * max(1.0, abs(low), abs(high)):  # equal, apart from rounding
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    rounding = 1e-9 * min(1.0, 1 / step)  # tolerance in bins, for wide and narrow bins
    first, last = math.floor(low / step + rounding), math.ceil(high / step - rounding)
    if whole and last * step <= high:
        last += 1  # a bin contains its lower edge, so the greatest number needs one more bin
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


@dataclass
class Values:
    """Numbers for a histogram, separated by outcome (right, wrong, unknown)."""

    by_outcome: tuple[array[float], ...] = field(default_factory=lambda: tuple(array("d") for _ in OUTCOMES))

    def add(self, value: float, outcome: int) -> None:
        self.by_outcome[outcome].append(value)

    def bounds(self) -> tuple[float, float] | None:
        """Return the least and the greatest number, or None without numbers."""
        filled = [values for values in self.by_outcome if values]
        return (min(map(min, filled)), max(map(max, filled))) if filled else None

    def counts(self, edges: Sequence[float]) -> list[list[int]]:
        """Count the numbers in each bin.

        Returns:
            One list an outcome, one count a bin [edge, next edge). The last bin includes its upper edge.
        """
        bins, low = len(edges) - 1, edges[0]
        width = edges[1] - low
        counts = []
        for values in self.by_outcome:
            counted = Counter(min(bins - 1, max(0, int((value - low) / width + 1e-6))) for value in values)
            counts.append([counted[n] for n in range(bins)])
        return counts


@dataclass
class Curve:
    """Means over questions of pass@k and majority@k.

    A question counts for every k up to its number of graded samples.
    Only VOTERS evenly spaced samples vote in a question with more.
    """

    at: dict[int, tuple[Clustered, Clustered]] = field(default_factory=dict)

    def add(self, answers: Sequence[str | None], correct: Sequence[bool], ks: Iterable[int]) -> None:
        """Add one question by its graded samples."""
        n, right = len(correct), sum(correct)
        if n > VOTERS:
            chosen = [i * n // VOTERS for i in range(VOTERS)]
            answers, correct = [answers[i] for i in chosen], [correct[i] for i in chosen]
        possible = [k for k in ks if k <= n]
        majorities = majority_curve(answers, correct, [k for k in possible if k <= len(correct)])
        for k, majority in zip_longest(possible, majorities):
            if k not in self.at:
                self.at[k] = Clustered(), Clustered()
            passed, voted = self.at[k]
            passed.add([pass_at_k(n, right, k)], n)
            if majority is not None:
                voted.add([majority], len(correct))

    def to_dict(self) -> dict[str, Any]:
        """Return lists over k: k, number of questions, and [mean, low, high] of both curves.

        Each of the three numbers may be None.
        """
        ks = sorted(self.at)
        return {
            "k": ks,
            "questions": [self.at[k][0].n for k in ks],
            "pass": [_mean_of_shares(self.at[k][0]) for k in ks],
            "majority": [_mean_of_shares(self.at[k][1]) for k in ks],
        }


@dataclass
class Group:
    """Counts over one arm, or over all arms."""

    trajectories: int = 0
    accuracy: Clustered = field(default_factory=Clustered)
    reward: Clustered = field(default_factory=Clustered)
    length: Clustered = field(default_factory=Clustered)
    statuses: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    rewards: Values = field(default_factory=Values)
    lengths: Values = field(default_factory=Values)
    curve: Curve = field(default_factory=Curve)
    most_samples: int = 0

    def add(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Add the samples of one question."""
        graded = [t for t in samples if t["correct"] is not None]
        self.trajectories += len(samples)
        self.most_samples = max(self.most_samples, len(samples))
        self.accuracy.add([float(t["correct"]) for t in graded])
        self.reward.add([t["reward"] for t in samples if t["reward"] is not None])
        self.length.add([t["num_tokens"] for t in samples])
        self.statuses.update(t["score_status"] for t in samples)
        self.finishes.update(t["finish_reason"] for t in samples)
        for t in samples:
            outcome = _OUTCOME[t["correct"]]
            self.lengths.add(t["num_tokens"], outcome)
            if t["reward"] is not None:
                self.rewards.add(t["reward"], outcome)
        self.curve.add(votes([t["answer"] for t in graded]), [t["correct"] for t in graded], curve_ks(len(samples)))

    def to_dict(self, edges: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        return {
            "trajectories": self.trajectories,
            "questions": self.length.clusters,
            "graded": self.accuracy.n,
            "accuracy": [self.accuracy.mean, *self.accuracy.share_interval()] if self.accuracy.n else None,
            "reward": _mean(self.reward),
            "tokens": _mean(self.length),
            "statuses": dict(self.statuses),
            "finishes": dict(self.finishes),
            "histograms": {"reward": self.rewards.counts(edges["reward"]), "tokens": self.lengths.counts(edges["tokens"])},
            "curve": self.curve.to_dict() if self.most_samples > 1 else None,
        }


@dataclass
class Tallies:
    """All counts of a report. Add the questions one by one.

    `arms` gives the order of the groups.
    """

    arms: Sequence[str]
    _groups: dict[str, Group] = field(init=False)
    _all: Group = field(default_factory=Group)
    _coherence: Values = field(default_factory=Values)
    _right: Counter[int] = field(default_factory=Counter)
    _engines: dict[str, Counter[str]] = field(default_factory=dict)
    _prompt_tokens: int = 0
    questions: int = 0
    ungraded: int = 0

    def __post_init__(self) -> None:
        self._groups = {name: Group() for name in self.arms}

    @property
    def trajectories(self) -> int:
        return self._all.trajectories

    def add(self, trajectories: Sequence[Mapping[str, Any]], s_wm: float) -> None:
        """Add one question.

        Args:
            trajectories: Entries of the question's `trajectories` column.
            s_wm: Coherence of the question.
        """
        self.questions += 1
        self._all.add(trajectories)
        by_arm: dict[str, list[Mapping[str, Any]]] = {}
        for t in trajectories:
            by_arm.setdefault(t["arm"], []).append(t)
            self._prompt_tokens += t["num_prompt_tokens"]
            engine = self._engines.setdefault(t["engine"], Counter())
            engine["trajectories"] += 1
            engine["tokens"] += t["num_tokens"]
        for name, samples in by_arm.items():
            self._groups.setdefault(name, Group()).add(samples)
        grades = [t["correct"] for t in trajectories]
        self._coherence.add(s_wm, 0)
        if None in grades:
            self.ungraded += 1
        else:
            self._right[sum(grades)] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values.

        `all` and `groups` (by arm) hold the counts, `edges` the bins of the histograms.
        `difficulty[n]` is the number of questions with n right trajectories.
        `ungraded` counts the questions with a trajectory of unknown grade.
        """
        edges = {
            "reward": nice_edges(*(self._all.rewards.bounds() or (0.0, 1.0))),
            "tokens": nice_edges(0.0, max(1.0, (self._all.lengths.bounds() or (0.0, 1.0))[1]), whole=True),
            "s_wm": nice_edges(0.0, 1.0, about=25),
        }
        return {
            "questions": self.questions,
            "prompt_tokens": self._prompt_tokens,
            "all": self._all.to_dict(edges),
            "groups": {name: group.to_dict(edges) for name, group in self._groups.items()},
            "edges": edges,
            "s_wm": self._coherence.counts(edges["s_wm"])[0],
            "difficulty": [self._right[n] for n in range(self._all.most_samples + 1)],
            "ungraded": self.ungraded,
            "engines": {name: dict(counts) for name, counts in sorted(self._engines.items())},
        }


def _mean(sums: Clustered) -> list[float | None] | None:
    if sums.mean is None:
        return None
    return [sums.mean, *(sums.interval() or (None, None))]


def _mean_of_shares(sums: Clustered) -> list[float | None]:
    """Return mean and interval of values in [0, 1], or three times None without values."""
    return [sums.mean, *sums.share_interval()] if sums.n else [None, None, None]
