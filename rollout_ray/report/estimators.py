"""Estimate pass@k, majority@k and 95% confidence intervals from samples.

Each function names the source of its formula. The module needs only the standard library.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that at least one of k samples is right.

    The k samples are chosen without replacement from n, of which c are right.
    The formula is 1 - C(n - c, k) / C(n, k), computed with exact integers. It is the unbiased
    estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.

    Raises:
        ValueError: Unless 0 <= c <= n and 1 <= k <= n.
    """
    _check(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"c is {c}, but there are n = {n} samples. c must be 0 to {n}.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Return the probability that the most common answer among k samples is right.

    The k samples are chosen without replacement from these n. The result is the exact mean of the
    majority vote over all C(n, k) choices (self-consistency, Wang et al. 2022, "Self-Consistency
    Improves Chain of Thought Reasoning"). All right answers count as one answer.
    A tie is decided by chance. A choice without any vote counts as wrong.

    Args:
        answers: n answers. A sample without an answer (None) does not vote.
        correct: n grades.
        k: Number of samples that vote.

    Raises:
        ValueError: If the lengths differ, or unless 1 <= k <= n.
    """
    return majority_curve(answers, correct, [k])[0]


def majority_curve(answers: Sequence[Hashable | None], correct: Sequence[bool], ks: Iterable[int]) -> list[float]:
    """Return `majority_at_k` for several k."""
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"There are {n} answers and {len(correct)} grades. Give one grade an answer.")
    votes = [(answer, right) for answer, right in zip(answers, correct, strict=True) if answer is not None]
    wrong = tuple(sorted(Counter(answer for answer, right in votes if not right).values()))
    right = sum(right for _, right in votes)
    return [_majority(n, right, wrong, k) for k in ks]


@lru_cache(maxsize=1 << 16)
def _majority(n: int, right: int, wrong: tuple[int, ...], k: int) -> float:
    """Compute majority@k from counts: `right` votes for the right answer, `wrong` for each other.

    For each number r of right votes, count the choices of the other k - r samples in which no wrong
    answer has more than r votes. An answer with fewer than r votes in total can never exceed r, so
    its samples are chosen freely.
    """
    _check(n, k)
    won = 0.0
    for r in range(1, min(right, k) + 1):
        rivals = [votes for votes in wrong if votes >= r]
        free = n - right - sum(rivals)
        # ways[t, j]: choices of j samples from the rivals so far, none above r votes and t of them with exactly r
        ways = {(0, 0): 1}
        for votes in rivals:
            longer: dict[tuple[int, int], int] = {}
            for (tied, chosen), count in ways.items():
                for v in range(min(r, k - r - chosen) + 1):
                    key = (tied + (v == r), chosen + v)
                    longer[key] = longer.get(key, 0) + count * math.comb(votes, v)
            ways = longer
        shares: Counter[int] = Counter()
        for (tied, chosen), count in ways.items():
            shares[tied] += count * math.comb(free, k - r - chosen)
        whole = math.comb(n, k)
        won += sum(count * math.comb(right, r) / whole / (tied + 1) for tied, count in shares.items())
    return min(1.0, won)


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, but there are {n} samples. k must be 1 to {n}.")


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Return the 95% score interval of a share, within [0, 1] (Wilson 1927).

    The interval is (0, 1) when n is 0. Both numbers may be fractions, because
    `Clustered.share_interval` passes an effective sample size.

    Raises:
        ValueError: Unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}, but n is {n}. successes must be 0 to n.")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The interval of a share of exactly 0 or 1 contains that share. Rounding would exclude it.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


@dataclass
class Clustered:
    """Sums over values in clusters, because samples of one question resemble each other.

    The standard error of the mean is the clustered one (Miller 2024, "Adding Error Bars to Evals"):
    sqrt(sum over clusters of (sum of the cluster's deviations)^2) / n. With one value a cluster it
    equals sqrt(variance / n) with the population variance. The interval is mean +- 1.96 standard errors.
    """

    n: int = 0
    samples: int = 0
    clusters: int = 0
    total: float = 0.0
    _sizes2: int = 0  # sums over clusters: size squared, total squared, size by total
    _totals2: float = 0.0
    _cross: float = 0.0

    def add(self, values: Sequence[float], samples: int | None = None) -> None:
        """Add one cluster. An empty cluster changes nothing.

        Args:
            values: The cluster's values.
            samples: Number of samples behind the values. None: each value is one sample.
        """
        if not values:
            return
        total = sum(values)
        self.n += len(values)
        self.samples += len(values) if samples is None else samples
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
        """Return the clustered standard error, or None with fewer than two clusters."""
        if self.mean is None or self.clusters < 2:
            return None
        deviations = self._totals2 - 2 * self.mean * self._cross + self.mean**2 * self._sizes2
        return math.sqrt(max(0.0, deviations)) / self.n

    def interval(self) -> tuple[float, float] | None:
        """Return the 95% interval of the mean, or None without a standard error."""
        if self.mean is None or self.standard_error is None:
            return None
        return self.mean - Z95 * self.standard_error, self.mean + Z95 * self.standard_error

    def share_interval(self) -> tuple[float, float]:
        """Return the 95% interval of a mean of values in [0, 1].

        This is Wilson's interval at the effective sample size p (1 - p) / SE^2, with the clustered
        standard error (Dean and Pagano 2015, "Evaluating Confidence Interval Methods for Binomial
        Proportions in Clustered Surveys"). The size is at most the number of samples. If all values are
        0 or all are 1, the spread is unknown, and the number of clusters is the sample size.
        """
        if self.mean is None:
            return 0.0, 1.0
        mean = min(1.0, max(0.0, self.mean))  # rounding may leave [0, 1]
        spread = mean * (1 - mean)
        if spread <= 0 or self.standard_error is None:
            effective = float(self.clusters)
        else:
            effective = spread / max(self.standard_error**2, spread / self.samples)
        return wilson(mean * effective, effective)
