"""Estimates from samples: pass@k, majority@k, and confidence intervals of shares and means.

Owns the formulas and their sources. It knows nothing of files, arms or pages, and needs nothing but the standard library.
Every interval is a 95% one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that of k draws, taken without replacement from n of which c are right, at least one is right.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on
    Code", equation 1; exact in integers. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    _check(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"{c} right draws of {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the commonest answer among k draws, taken without replacement from these n, is right.

    `answers` and `correct` have length n. A draw without an answer (None) does not vote; all right answers count as one,
    however they are written; among equally common answers chance decides; where nobody votes, the vote is lost. This is
    the mean over all C(n, k) choices of the majority vote (self-consistency) of Wang et al. 2022, "Self-Consistency
    Improves Chain of Thought Reasoning", counted exactly. Raises ValueError where the lengths differ, or unless
    1 <= k <= n.
    """
    return majority_curve(answers, correct, [k])[0]


def majority_curve(answers: Sequence[Hashable | None], correct: Sequence[bool], ks: Iterable[int]) -> list[float]:
    """`majority_at_k` for several k at once."""
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"{n} answers with {len(correct)} grades")
    votes = [(answer, right) for answer, right in zip(answers, correct, strict=True) if answer is not None]
    wrong = tuple(sorted(Counter(answer for answer, right in votes if not right).values()))
    right = sum(right for _, right in votes)
    return [_majority(n, right, wrong, k) for k in ks]


@lru_cache(maxsize=1 << 16)
def _majority(n: int, right: int, wrong: tuple[int, ...], k: int) -> float:
    """majority@k where the right answer has `right` of the n votes and the wrong ones have those of `wrong`.

    For each number r of right votes among the k: how many ways there are for the other k - r draws, no wrong answer
    getting more than r votes. An answer that has fewer than r votes in all cannot, so those draws are chosen freely.
    """
    _check(n, k)
    won = 0.0
    for r in range(1, min(right, k) + 1):
        rivals = [votes for votes in wrong if votes >= r]
        free = n - right - sum(rivals)
        # ways[t][j]: choices of j draws from the rivals so far, none over r votes and t of them with exactly r
        ways = {(0, 0): 1}
        for votes in rivals:
            longer: dict[tuple[int, int], int] = {}
            for (tied, drawn), count in ways.items():
                for v in range(min(r, k - r - drawn) + 1):
                    place = (tied + (v == r), drawn + v)
                    longer[place] = longer.get(place, 0) + count * math.comb(votes, v)
            ways = longer
        shares: Counter[int] = Counter()
        for (tied, drawn), count in ways.items():
            shares[tied] += count * math.comb(free, k - r - drawn)
        whole = math.comb(n, k)
        won += sum(count * math.comb(right, r) / whole / (tied + 1) for tied, count in shares.items())
    return min(1.0, won)


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} with {n} draws; it must be 1 to {n}")


def wilson(successes: float, n: float) -> tuple[float, float]:
    """The 95% score interval of a share, in [0, 1] (Wilson 1927); (0, 1) where n is 0.

    Neither number must be whole: `Clustered.share_interval` gives an effective sample size. Raises ValueError unless
    0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # A share of exactly 0 or 1 is in its own interval; rounding would leave it just outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


@dataclass
class Clustered:
    """Sums over values that come in clusters: the draws of one question resemble each other, its means do not.

    The standard error of the mean is the clustered one of Miller 2024, "Adding Error Bars to Evals": the root
    of the sum over clusters of (sum of the deviations in it) squared, over n. With one value a cluster it is the usual
    sqrt(variance / n), by the population's variance. Interval: mean +- 1.96 standard errors.
    """

    n: int = 0
    clusters: int = 0
    total: float = 0.0
    _sizes2: int = 0  # sums over clusters: size squared, total squared, size by total
    _totals2: float = 0.0
    _cross: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """Counts in one cluster; an empty one changes nothing."""
        if not values:
            return
        total = sum(values)
        self.n += len(values)
        self.clusters += 1
        self.total += total
        self._sizes2 += len(values) ** 2
        self._totals2 += total * total
        self._cross += len(values) * total

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    @property
    def standard_error(self) -> float | None:
        """None where fewer than two clusters tell nothing of the spread."""
        if self.mean is None or self.clusters < 2:
            return None
        deviations = self._totals2 - 2 * self.mean * self._cross + self.mean**2 * self._sizes2
        return math.sqrt(max(0.0, deviations)) / self.n

    def interval(self) -> tuple[float, float] | None:
        """The mean's 95% interval, None where there is no standard error."""
        if self.mean is None or self.standard_error is None:
            return None
        return self.mean - Z95 * self.standard_error, self.mean + Z95 * self.standard_error

    def share_interval(self) -> tuple[float, float]:
        """The 95% interval of the mean of zeros and ones: Wilson's, at the sample size n / deff.

        deff, the design effect, is the clustered variance over the simple one, at least 1 (Dean and Pagano 2015,
        "Evaluating Confidence Interval Methods for Binomial Proportions in Clustered Surveys"). Where all values are
        equal it cannot be seen, and the sample size is the number of clusters.
        """
        if self.mean is None:
            return 0.0, 1.0
        simple = self.mean * (1 - self.mean) / self.n
        if simple <= 0 or self.standard_error is None:
            effective = float(self.clusters)
        else:
            effective = self.n / max(1.0, self.standard_error**2 / simple)
        return wilson(self.mean * effective, effective)
