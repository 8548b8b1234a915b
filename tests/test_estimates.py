"""Compare the estimators with brute force over every choice of k samples."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout_ray.report.estimators import Z95, Clustered, majority_at_k, pass_at_k, wilson

# A and B are two spellings of the right answer; all other letters are wrong answers.
RIGHT = {"A", "B"}


def vote(chosen: tuple[str | None, ...]) -> float:
    """Return the probability that a majority vote over these answers is right."""
    votes = Counter("right" if answer in RIGHT else answer for answer in chosen if answer is not None)
    if not votes:
        return 0.0
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return ("right" in winners) / len(winners)


@given(st.integers(1, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_choices_with_a_right_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["A", "B", "u", "v", "w", "x", None]), min_size=1, max_size=9), st.data())
@example(["A", "u", "u", None, "v", "v", "B", "w"], None)
def test_majority_at_k_is_the_mean_vote_over_all_choices(answers: list[str | None], data: st.DataObject | None) -> None:
    ks = [data.draw(st.integers(1, len(answers)))] if data else range(1, len(answers) + 1)
    for k in ks:
        choices = list(combinations(answers, k))
        expected = sum(map(vote, choices)) / len(choices)
        assert majority_at_k(answers, [a in RIGHT for a in answers], k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_many_samples_is_counted_quickly() -> None:
    """Enumeration over 256 samples with rivals of every size would never end."""
    answers = ["A"] * 85 + ["u"] * 60 + ["v"] * 40 + ["w"] * 30 + [f"x{i}" for i in range(41)]
    correct = [answer == "A" for answer in answers]
    curve = [majority_at_k(answers, correct, k) for k in (1, 4, 16, 64, 256)]
    assert curve[0] == pytest.approx(85 / 256) and curve[-1] == 1.0 and curve == sorted(curve)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_where_the_score_test_is_just_not_rejected(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(Z95, rel=1e-6)


def test_wilson_gives_the_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_one_value_a_cluster_has_the_usual_standard_error(values: list[float]) -> None:
    sums = Clustered()
    for value in values:
        sums.add([value])
    assert sums.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert sums.standard_error == pytest.approx(statistics.pstdev(values) / math.sqrt(len(values)), abs=1e-6)


@given(st.lists(st.lists(st.floats(-5, 5), max_size=5), min_size=2, max_size=12).filter(lambda c: sum(map(bool, c)) > 1))
def test_clusters_are_summed_before_they_are_squared(clusters: list[list[float]]) -> None:
    sums = Clustered()
    for cluster in clusters:
        sums.add(cluster)
    values = [value for cluster in clusters for value in cluster]
    mean = statistics.fmean(values)
    squares = math.fsum(math.fsum(value - mean for value in cluster) ** 2 for cluster in clusters)
    assert sums.standard_error == pytest.approx(math.sqrt(squares) / len(values), abs=1e-6)


def test_samples_that_always_agree_count_as_one() -> None:
    """Eight equal samples a question give the interval of one sample a question."""
    alike, single = Clustered(), Clustered()
    for question in range(40):
        alike.add([float(question % 4 > 0)] * 8)
        single.add([float(question % 4 > 0)])
    assert alike.share_interval() == pytest.approx(wilson(30, 40))
    assert single.share_interval() == pytest.approx(wilson(30, 40))
    certain = Clustered()
    for _ in range(40):
        certain.add([1.0] * 8)
    assert certain.share_interval() == pytest.approx(wilson(40, 40))


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, -1, 1),
        lambda: pass_at_k(4, 2, 5),
        lambda: pass_at_k(0, 0, 1),
        lambda: majority_at_k(["A"], [True], 2),
        lambda: majority_at_k(["A"], [], 1),
        lambda: wilson(3, 2),
    ],
)
def test_impossible_counts_are_refused(call: object) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        call()  # type: ignore[operator]
