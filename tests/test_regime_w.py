"""Regime W: worked examples computed by hand, and properties."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.config.scoring_schema import RewardConfig
from rollout_ray.scoring.grader import Grade
from rollout_ray.scoring.regime_w import Scorable, score_question

ANSWERS = st.sampled_from([None, "1", "2", "3"])
TEXTS = st.lists(st.sampled_from(["so", "Then", "then", "three", "7", "apples"]), max_size=8).map(" ".join)
STATUSES = st.sampled_from(["correct", "incorrect", "no_answer", "no_gold", "bad_gold", "timeout", "error"])


@st.composite
def questions(draw: st.DrawFn, min_size: int = 0) -> list[tuple[Scorable, Grade]]:
    rows = []
    for _ in range(draw(st.integers(min_size, 7))):
        role = draw(st.sampled_from([None, "A", "A'", "CF1"]))
        scorable = Scorable(draw(TEXTS), draw(st.integers(0, 2000)), role)
        rows.append((scorable, Grade(draw(STATUSES), draw(ANSWERS))))
    return rows


def score(rows: list[tuple[Scorable, Grade]], **config: object):  # type: ignore[no-untyped-def]
    return score_question([s for s, _ in rows], [g for _, g in rows], RewardConfig.model_validate(config))


def row(answer: str | None, words: str = "a b", tokens: int = 10, role: str | None = None, status: str = "incorrect"):  # type: ignore[no-untyped-def]
    return Scorable(words, tokens, role), Grade(status, answer)  # type: ignore[arg-type]


def test_worked_example_without_probes() -> None:
    # Answers 5 5 7 none: of six pairs one agrees. Words: {a,b} {a,b} {a,c} {d}: lengths 2 2 2 1.
    rows = [
        row("5", "a b", 512, status="correct"),
        row("5", "B a", 612, status="correct"),
        row("7", "a c", 10),
        row(None, "d", 10, status="no_answer"),
    ]
    result = score(rows)
    assert result.s_end == pytest.approx(1 / 6)
    # mean 7/4, variance 3/16, L = 1 / (1 + (3/16)/(7/4)) = 28/31; J = (1 + 1/3 + 1/3 + 0 + 0 + 0) / 6 = 5/18
    assert result.s_path == pytest.approx(0.4 * 28 / 31 + 0.6 * 5 / 18)
    assert result.s_cf == pytest.approx(2 / 4)
    s_wm = 0.4 * (1 / 6) + 0.3 * result.s_path + 0.3 * 0.5
    assert result.s_wm == pytest.approx(s_wm)
    assert result.rewards == pytest.approx((1 + 0.5 * s_wm, 1 + 0.5 * s_wm - 0.1, 0.5 * s_wm, 0.5 * s_wm))


def test_worked_example_with_probes() -> None:
    # Pairs (A, CF1) agree, (A', CF1) do not; an absent CF1 would agree with neither.
    rows = [row("5", role="A"), row("7", role="A'"), row("5", role="CF1"), row("5")]
    assert score(rows).s_cf == pytest.approx(1 / 2)
    absent = [row(None, role="A"), row("7", role="A'"), row(None, role="CF1")]
    assert score(absent).s_cf == 0.0


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["5", "5", "5"], 1.0),
        (["5", "6", "7"], 0.0),
        (["5", "5", "7"], 2 / 3),
        ([None, None], 0.5),
        (["5", None, None], 1.0),
        (["5", "6", None], 1 / 3),
        (["5"], 1.0),
    ],
)
def test_s_cf_without_probes(answers: list[str | None], expected: float) -> None:
    assert score([row(a) for a in answers]).s_cf == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "(1, 2)"),
        ("2\\sqrt{3}", "2 \\sqrt{3}"),
        ("x^2+1", "x^2 + 1"),
        ("1,2", "1, 2"),
        ("B", "(B)"),
        ("B", "B)"),
        ("Paris", "paris"),
        ("2:30 PM", "2:30 p.m"),
    ],
)
def test_answers_that_are_graded_as_equal_agree(one: str, other: str) -> None:
    result = score([row(one), row(other)])
    assert (result.s_end, result.s_cf) == (1.0, 1.0)
    assert score([row(one, role="A"), row(other, role="CF1")]).s_cf == 1.0
    assert score([row(one), row(other + "0")]).s_end == 0.0


def test_no_trajectories() -> None:
    result = score([])
    assert (result.s_end, result.s_path, result.s_cf, result.rewards) == (0.0, 0.0, 0.5, ())


def test_one_trajectory() -> None:
    result = score([row("5", "a b c")])
    assert (result.s_end, result.s_path) == (1.0, 1.0)  # L alone: no variance
    assert score([row("5", "")]).s_path == 0.0


def test_quality_and_bonus_of_the_second_preset() -> None:
    # Correct ones have 10, 20 and 40 tokens: conciseness 1, 2/3, 0. All agree, so s_end = 1 earns the bonus.
    rows = [row("5", "a", tokens, status="correct") for tokens in (10, 20, 40)]
    result = score(rows, reward_preset="regime-w-2")
    assert [t.quality for t in result.terms if t] == pytest.approx([0.3, 0.2, 0.0])
    assert [t.bonus for t in result.terms if t] == [0.2, 0.2, 0.2]


def test_quality_with_correct_probes() -> None:
    # The probe has words {a, b}; the other correct one {a, c}: overlap 1/3. Equal lengths: conciseness 0.5.
    rows = [row("5", "a b", status="correct", role="A"), row("5", "a c", status="correct"), row("6", "a b")]
    result = score(rows, reward_preset="regime-w-2")
    first, second, third = result.terms
    assert first and second and third
    assert first.quality == pytest.approx(0.3 * (0.4 * 0.5 + 0.6 * 1))
    assert second.quality == pytest.approx(0.3 * (0.4 * 0.5 + 0.6 / 3))
    assert third.quality == 0.0


def test_no_gold_is_rewarded_for_coherence_alone() -> None:
    result = score([row("5", tokens=600, status="no_gold"), row("5", status="no_gold")])
    assert result.rewards[0] == pytest.approx(0.5 * result.s_wm - 0.088)


def test_exact_pays_one_or_zero_and_nothing_where_nobody_can_tell() -> None:
    statuses = ["correct", "incorrect", "no_answer", "no_gold", "bad_gold", "timeout", "error"]
    result = score([row("5", tokens=2000, status=status) for status in statuses], reward_preset="exact")
    assert result.rewards == (1.0, 0.0, 0.0, None, None, None, None)


@pytest.mark.parametrize("status", ["timeout", "error", "bad_gold"])
def test_an_unknown_verdict_has_no_reward(status: str) -> None:
    result = score([row("5", status=status), row("5", status="correct")])
    assert result.rewards[0] is None and result.terms[0] is None
    assert result.rewards[1] is not None


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match="1 trajectories with 0 grades"):
        score_question([Scorable("", 0)], [], RewardConfig())


@given(questions())
def test_scores_are_within_bounds(rows: list[tuple[Scorable, Grade]]) -> None:
    result = score(rows, reward_preset="regime-w-2")
    assert all(0.0 <= value <= 1.0 for value in (result.s_end, result.s_path, result.s_cf, result.s_wm))
    for (_, grade), terms, reward in zip(rows, result.terms, result.rewards, strict=True):
        assert (reward is None) == (grade.status in ("timeout", "error", "bad_gold"))
        if terms:
            assert 0 <= terms.quality <= 0.3 + 1e-12 and terms.penalty >= 0
            assert terms.total == reward


@given(questions(), st.randoms())
def test_order_does_not_matter(rows: list[tuple[Scorable, Grade]], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(rows)))
    random.shuffle(order)
    before, after = score(rows), score([rows[i] for i in order])
    for name in ("s_end", "s_path", "s_cf", "s_wm"):
        assert getattr(before, name) == pytest.approx(getattr(after, name))
    for place, i in enumerate(order):
        assert after.rewards[place] == pytest.approx(before.rewards[i])


@given(questions(min_size=2), st.data())
def test_agreeing_more_never_lowers_s_end(rows: list[tuple[Scorable, Grade]], data: st.DataObject) -> None:
    """A trajectory that had no answer and now gives one that another gave can only raise s_end."""
    silent = [i for i, (_, grade) in enumerate(rows) if grade.answer is None]
    if not silent:
        return
    i = data.draw(st.sampled_from(silent))
    changed = list(rows)
    changed[i] = rows[i][0], dataclasses.replace(rows[i][1], answer=data.draw(st.sampled_from(["1", "2", "3"])))
    assert score(changed).s_end >= score(rows).s_end


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_longer_output_never_earns_more(a: int, b: int) -> None:
    short, long = sorted((a, b))
    rewards = [score([row("5", tokens=n, status="correct")]).rewards[0] for n in (short, long)]
    assert rewards[0] >= rewards[1]


@given(questions(min_size=1))
def test_being_right_earns_alpha(rows: list[tuple[Scorable, Grade]]) -> None:
    wrong = [(s, Grade("incorrect", g.answer)) for s, g in rows]
    right = [(s, Grade("correct", g.answer)) for s, g in rows]
    for low, high in zip(score(wrong).rewards, score(right).rewards, strict=True):
        assert high == pytest.approx(low + 1.0)
