"""The statistics of a report: by arm, by question and over all, from trajectories as a merged file holds them.

Owns what is counted and the shape of the result, which is JSON. Formulas and intervals are estimates.py's; nothing is
drawn or written here. It keeps two numbers a trajectory and one a question, never a text.
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

BINS = 30  # about how many bars a histogram has
VOTERS = 64  # draws of a question that majority@k is counted over; the exact count over many more takes seconds
EVERY_K = 16  # up to so many draws each k is on a curve, beyond it powers of two
OUTCOMES = ("right", "wrong", "unknown")
_OUTCOME = {True: 0, False: 1, None: 2}


def curve_ks(samples: int) -> list[int]:
    """The k of a curve over this many draws: all of 1 to 16, or the powers of two and `draws` itself."""
    if samples <= EVERY_K:
        return list(range(1, samples + 1))
    return sorted({*(1 << n for n in range(samples.bit_length())), samples})


def nice_edges(low: float, high: float, about: int = BINS, whole: bool = False) -> list[float]:
    """Edges of about `about` equal bins over [low, high] at multiples of 1, 2 or 5 times a power of ten; of whole
    numbers at least 1 apart."""
    if not high - low > 1e-6 * max(1.0, abs(low), abs(high)):  # equal, up to rounding
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    rounding = 1e-9 * min(1.0, 1 / step)  # of a bin, and of a number
    first, last = math.floor(low / step + rounding), math.ceil(high / step - rounding)
    if whole and last * step <= high:
        last += 1  # a bin holds its lower edge: the greatest number needs one of its own
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


@dataclass
class Values:
    """Numbers by outcome (right, wrong, unknown), for a histogram."""

    by_outcome: tuple[array[float], ...] = field(default_factory=lambda: tuple(array("d") for _ in OUTCOMES))

    def add(self, value: float, outcome: int) -> None:
        self.by_outcome[outcome].append(value)

    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest number; None without any."""
        filled = [values for values in self.by_outcome if values]
        return (min(map(min, filled)), max(map(max, filled))) if filled else None

    def counts(self, edges: Sequence[float]) -> list[list[int]]:
        """Per outcome the numbers in each bin [edge, next edge), the last bin closed."""
        bins, low, width = len(edges) - 1, edges[0], edges[1] - edges[0]
        counts = []
        for values in self.by_outcome:
            counted = Counter(min(bins - 1, max(0, int((value - low) / width + 1e-6))) for value in values)
            counts.append([counted[n] for n in range(bins)])
        return counts


@dataclass
class Curve:
    """pass@k and majority@k as means over questions: a question counts for every k up to its graded draws. Of one with
    more than VOTERS draws an even selection of VOTERS votes."""

    at: dict[int, tuple[Clustered, Clustered]] = field(default_factory=dict)

    def add(self, answers: Sequence[str | None], correct: Sequence[bool], ks: Iterable[int]) -> None:
        """Counts in one question by its graded draws."""
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
            passed.add([pass_at_k(n, right, k)])
            if majority is not None:
                voted.add([majority])

    def to_dict(self) -> dict[str, Any]:
        """Lists over k: k, the questions that count, and [mean, low, high] of both, any of which may be None."""
        ks = sorted(self.at)
        return {
            "k": ks,
            "questions": [self.at[k][0].n for k in ks],
            "pass": [_mean_of_shares(self.at[k][0]) for k in ks],
            "majority": [_mean_of_shares(self.at[k][1]) for k in ks],
        }


@dataclass
class Group:
    """What is counted of one arm, or of all arms together."""

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

    def add(self, drawn: Sequence[Mapping[str, Any]]) -> None:
        """Counts in the draws of one question."""
        graded = [t for t in drawn if t["correct"] is not None]
        self.trajectories += len(drawn)
        self.most_samples = max(self.most_samples, len(drawn))
        self.accuracy.add([float(t["correct"]) for t in graded])
        self.reward.add([t["reward"] for t in drawn if t["reward"] is not None])
        self.length.add([t["num_tokens"] for t in drawn])
        self.statuses.update(t["score_status"] for t in drawn)
        self.finishes.update(t["finish_reason"] for t in drawn)
        for t in drawn:
            outcome = _OUTCOME[t["correct"]]
            self.lengths.add(t["num_tokens"], outcome)
            if t["reward"] is not None:
                self.rewards.add(t["reward"], outcome)
        self.curve.add(votes([t["answer"] for t in graded]), [t["correct"] for t in graded], curve_ks(len(drawn)))

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
    """Everything that a report counts. `arms` fixes the order; `add` takes one question after the other."""

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
        """Counts in one question: its trajectories, with the fields of a `trajectories` entry, and its coherence."""
        self.questions += 1
        self._all.add(trajectories)
        by_arm: dict[str, list[Mapping[str, Any]]] = {}
        for t in trajectories:
            by_arm.setdefault(t["arm"], []).append(t)
            self._prompt_tokens += t["num_prompt_tokens"]
            engine = self._engines.setdefault(t["engine"], Counter())
            engine["trajectories"] += 1
            engine["tokens"] += t["num_tokens"]
        for name, drawn in by_arm.items():
            self._groups.setdefault(name, Group()).add(drawn)
        grades = [t["correct"] for t in trajectories]
        self._coherence.add(s_wm, 0)
        if None in grades:
            self.ungraded += 1
        else:
            self._right[sum(grades)] += 1

    def to_dict(self) -> dict[str, Any]:
        """JSON: `all` and `groups` (by arm), histograms' `edges`, s_wm's counts, and how many questions have how many right
        of K (`difficulty`; those with a draw whose grade is unknown are `ungraded`)."""
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
    """Mean and interval of values in [0, 1]; the normal interval is cut there."""
    low, high = sums.interval() or (None, None)
    return [sums.mean, None if low is None else max(0.0, low), None if high is None else min(1.0, high)]
