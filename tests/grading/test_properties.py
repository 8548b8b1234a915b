"""What must never be: a verdict that depends on the order of calls or on a frame, a gold that is not equal to itself."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.records import Question
from rollout_ray.scoring.grader import Grader
from rollout_ray.scoring.graders import unreadable_golds
from rollout_ray.scoring.placement.markers import MARKER
from tests.conftest import ROOT
from tests.grading.tables import is_right, tables

SHARED_CASES = ROOT.parent / "shared" / "data" / "grading" / "cases.jsonl"
GOLDS = sorted(
    {gold for cases in tables().values() for gold, _, _ in cases if "\n" not in gold and not MARKER.search(gold)}
)
FRAMES = (
    "\\boxed{{{}}}",
    "So it is \\boxed{{{}}}.",
    "Step 1: 2 + 3 = 5\n\n\\[\\boxed{{{}}}\\]",
    "**Answer:** \\boxed{{{}}}",
)


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_is_correct_against_itself_in_every_frame(grader: Grader, gold: str) -> None:
    statuses = {frame: grader.grade(gold, frame.format(gold)).status for frame in FRAMES}
    assert set(statuses.values()) == {"correct"}, statuses


def test_a_verdict_does_not_depend_on_the_order_of_calls(grader: Grader) -> None:
    pairs = [(gold, text) for cases in tables().values() for gold, text, _ in cases[::7]]
    forward = grader.grade_many(pairs)
    grader.forget()
    assert grader.grade_many(pairs[::-1])[::-1] == forward
    assert [grader.grade(*pair) for pair in pairs] == forward


NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=60)
SPELLINGS = st.sampled_from(["Answer: {}", "\\boxed{{{}}}", "The answer is {} dollars.", "Answer: {} eggs", "#### {}"])


@settings(max_examples=200)
@given(NUMBERS, NUMBERS, SPELLINGS)
def test_a_mutated_number_is_never_correct(grader: Grader, gold: Fraction, other: Fraction, spelling: str) -> None:
    status = grader.grade(str(gold), spelling.format(other)).status
    assert status == ("correct" if gold == other else "incorrect")


@settings(max_examples=60)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.data())
def test_a_list_with_a_mutated_value_is_never_correct(grader: Grader, values: list[int], data: st.DataObject) -> None:
    gold = ", ".join(map(str, values))
    assert grader.grade(gold, f"\\boxed{{{gold}}}").status == "correct"
    place = data.draw(st.integers(0, len(values) - 1))
    mutated = [value + 200 * (n == place) for n, value in enumerate(values)]
    assert grader.grade(gold, f"\\boxed{{{', '.join(map(str, mutated))}}}").status == "incorrect"


def test_the_shared_cases_are_graded_as_a_careful_person_would(grader: Grader) -> None:
    if not SHARED_CASES.exists():
        pytest.skip(f"the cases are not at {SHARED_CASES}")
    cases = [json.loads(line) for line in SHARED_CASES.read_text().splitlines()]
    grades = grader.grade_many([(case["gold"], case["text"]) for case in cases])
    wrong = [case for case, grade in zip(cases, grades, strict=True) if not is_right(grade.status, case["correct"])]
    assert not wrong


def test_an_explanation_names_the_text_the_forms_and_the_rule(grader: Grader) -> None:
    found = grader.explain("12 km", "It is far.\nAnswer: 12 m")
    assert (found.status, found.taken, found.answer, found.gold) == ("incorrect", "12 m", "12 m", "12 km")
    assert found.rule == "units of one dimension, by value" and found.seconds >= 0
    assert any("12 km" in line for line in found.lines())


def test_golds_that_cannot_be_read_are_listed_once() -> None:
    questions = [Question("q", "p", gold) for gold in ("18", "", "$", "", None, "A: 4")]
    assert unreadable_golds(ScoringConfig(), questions) == ["", "$"]
