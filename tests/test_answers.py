"""Which answer a text gives, and its normal form."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.scoring.extraction import extract_answer, normalise


def answer_of(text: str) -> str | None:
    found = extract_answer(text).answer
    return found.text if found else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # markers, the last of which wins
        ("Step 1: 2 + 2 = 4\nAnswer: 4", "4"),
        ("#### 72", "72"),
        ("so \\boxed{72}.", "72"),
        ("The answer is 72.", "72"),
        ("the final answer is: $72$", "72"),
        ("<answer> 72 </answer>", "72"),
        ("**Answer:** 72", "72"),
        ("**Answer: 72**", "72"),
        ("Answer:\n\n  72 apples", "72"),
        ("Answer: 5\nNo: \\boxed{6}", "6"),
        ("\\boxed{6} is what I first thought. Answer: 5", "5"),
        ("Answer: \\boxed{\\text{72}}", "72"),
        ("The correct answer is (B)", "(B)"),
        ("Answer: 72\n\nThe answer is correct.", "72"),
        ("The answer is right-angled.", "right-angled"),
        # bold type, a copied placeholder, display maths
        ("The answer is **72** clips.", "72"),
        ("Answer: x**2", "x**2"),
        ("Answer: 2 ** 3", "2 ** 3"),
        ("Answer: <72> clips", "72"),
        ("Answer: <1,2>", "<1,2>"),
        ("Answer: <5", "<5"),
        ("Answer:\n\\[\n18\n\\]\nwhich is it", "18"),
        ("Answer:\n```text\n18\n```", "18"),
        # without a marker the last number
        ("so x is \u22125", "-5"),
        ("2 + 2 = 4, and 4 * 3 = 12", "12"),
        ("it falls to -4", "-4"),
        ("5-3", "3"),
        ("no number at all", None),
        # a heading is no marker
        ("#### Step 1: add\n3 + 4 = 7", "7"),
        # thoughts
        ("<think>Answer: 5</think>Answer: 6", "6"),
        ("<think>Answer: 5", None),
        ("it was 5</think> the answer is 6", "6"),
        # run-ons
        ("Answer: 4\n\nProblem: Tom has 3 cats.\nAnswer: 9", "4"),
        ("# Step 1: read\nProblem: Tom has 3 cats and gets 1.\nAnswer: 4", "4"),
        ("**1. Read**\nProblem: Tom has 3 cats and gets 1.\nAnswer: 4", "4"),
        ("2 + 2 = 4\n\n**Question:** what is 3 + 6?\n9", "4"),
        ("Problem: Tom has 3 cats and gets 1.\nSolution: 3 + 1 = 4\nAnswer: 4", "4"),
        ("I restate it first.\nProblem: Tom has 3 cats and gets 1.\nAnswer: 4", "4"),
        # hedging and lists
        ("Answer: 5 or 6", "5, 6"),
        ("Answer: either 5 or 6", "5, 6"),
        ("Answer: between 5 and 6", "between 5 and 6"),
        ("Answer: 3 apples and 4 pears", "3 apples, 4 pears"),
        ("\\boxed{5} or \\boxed{6}", "5, 6"),
        ("\\boxed{5}, that is \\boxed{5.0}", "5"),
        ("\\boxed{5}\nNo, \\boxed{6}", "6"),
        # nothing behind the marker
        ("3 + 4 = 7\nAnswer:", None),
        ("\\boxed{7", None),
        ("\\boxed{}", None),
        ("Answer: 17 eggs, 18 eggs", "17 eggs, 18 eggs"),
        ("\\boxed{\\sqrt{2} \\text{ and } -\\sqrt{2}}", "\\sqrt{2}, -\\sqrt{2}"),
        # asides
        ("Answer: 120 minutes (2 hours)", "120"),
        ("Answer: 2 (x+1)", "2 (x+1)"),
        ("Answer: 1 (mod 3)", "1 (mod 3)"),
        # surrounding words
        ("Answer: 72 clips in 2 months", "72"),
        ("Answer: a total of 72 dollars", "72"),
        ("Answer: 12 * 6 = 72", "72"),
        ("Answer: x = 72", "72"),
        ("The answer is 72!", "72"),
        ("The answer is $5$ because $2+3=5$.", "5"),
        ("Answer: The largest value of $f(x)$ is 19.", "19"),
        ("Answer: 12 apples * 6 = 72 apples", "72"),
        ("Answer: 12 x 6 = 72", "72"),
        ("Answer: 7 (seven)", "7"),
        ("Answer: 72</answer>", "72"),
        ("Answer: 72 <|im_end|>user 5", "72"),
        ("Answer: 2 1/2 cups", "2.5"),
        ("Answer: 28 percent of them", "28"),
        ("so the share is $\\frac{2}{5}$.", "0.4"),
        ("the code is AZ2A", None),
        # letters at a number: a unit, or factors
        ("Answer: 12cm", "12"),
        ("Answer: 15 cm²", "15"),
        ("Answer: 72 km/h", "72"),
        ("Answer: 3xy", "3xy"),
        ("Answer: 3 xy", "3 xy"),
        ("Answer: x²", "x^{2}"),
        # a list, a range, a difference, a time of day
        ("Answer: 19, 46, and 82", "19, 46, 82"),
        ("Answer: 3-5", "3-5"),
        ("Answer: 10:30 am", "10:30 am"),
        ("Answer: the 20th of June, 2020", "the 20th of June, 2020"),
        ("Answer: 20th of June", "June 20"),
        # equations
        ("Answer: 2 = y", "2"),
        ("Answer: 2x + y = 1", "2x + y = 1"),
        ("Answer: x = x/2 + 5", "x = x/2 + 5"),
        ("Answer: y = 2x", "2x"),
    ],
)
def test_the_answer_of_a_text(text: str, expected: str | None) -> None:
    assert answer_of(text) == expected


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("1,234", "1234"),
        ("1,234,567.50", "1234567.5"),
        ("$1,000", "1000"),
        ("€ 5", "5"),
        ("\\$18", "18"),
        ("72.", "72"),
        ("72.00", "72"),
        ("+5", "5"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("007", "7"),
        (".5", "0.5"),
        ("1/2", "0.5"),
        ("2/6", "1/3"),
        ("-3/4", "-0.75"),
        ("1 1/2", "1.5"),
        ("1\u00bd", "1.5"),
        ("\u00bd", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac12", "0.5"),
        ("1\\frac{1}{2}", "1.5"),
        ("1e3", "1000"),
        ("2.5E-2", "0.025"),
        ("3 \\times 10^{8}", "300000000"),
        ("50%", "50"),
        ("50\\%", "50"),
        ("90^\\circ", "90"),
        ("10\\text{ cm}", "10"),
        ("1{,}000", "1000"),
        ("1\\,000", "1000"),
        ("\u00a01\u202f000", "1000"),
        ("\uff11\uff12", "12"),
        ("x=5", "5"),
        ("1 000 000.5", "1000000.5"),
        ("1 000 4/9", "9004/9"),
        ("10~\\mathrm{cm}", "10"),
        ("20°C", "20"),
        ("12\\text{ cm}", "12"),
        ("\u202e27\u202c", "27"),
        ("7\u200b2", "72"),
        ("4.5\\%", "4.5"),
        ("1.5 million", "1500000"),
        ("45 \\text{ m}^2", "45"),
        ("18\\,\\mathrm{m/s}", "18"),
        ("18 L", "18"),
    ],
)
def test_a_plain_number_has_one_normal_form(written: str, normal: str) -> None:
    answer = normalise(written)
    assert answer is not None and answer.text == normal and answer.number is not None


@pytest.mark.parametrize(
    "written", ["1e999999999", "1/0", "1,23", "11 7/6", "5²", "10:30", "10!", "\\sqrt{2}", "(1, 2)", "C", "9^9^9^9"]
)
def test_what_is_no_plain_number_keeps_its_text(written: str) -> None:
    answer = normalise(written)
    assert answer is not None and answer.number is None


@pytest.mark.parametrize("written", ["", "  ", "1" * 301, "$"])
def test_what_is_no_answer(written: str) -> None:
    assert normalise(written) is None


def test_reasoning_is_what_comes_before_the_answer() -> None:
    assert extract_answer("Step 1: 2 + 2 = 4\n**Answer:** 4").reasoning == "Step 1: 2 + 2 = 4"
    assert extract_answer("<think>hm</think> well\nAnswer: 4").reasoning == "hm well"
    assert extract_answer("just 4").reasoning == "just 4"
    assert extract_answer("so\nAnswer: 4\nProblem: next\nAnswer: 5").reasoning == "so"


def test_an_answer_after_100_000_characters_counts() -> None:
    assert answer_of("so it goes on " * 8000 + "\nAnswer: 72") == "72"


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1,",
        "1/",
        "-",
        " ",
        "\\boxed{",
        "Answer: ",
        "<think>",
        "Problem: x\n",
        "Problem: 5\n",
        "{",
        "1 1/",
        "####",
        "^9",
    ],
)
def test_long_hostile_texts_are_read_to_the_end(unit: str) -> None:
    """A quadratic expression would take hours on these (the test's own time limit ends it)."""
    extract_answer(unit * (1_000_000 // len(unit)))


@given(st.text(max_size=400))
def test_any_text_gives_an_answer_or_none(text: str) -> None:
    found = extract_answer(text)
    assert found.answer is None or len(found.answer.text) > 0


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${:,}", "{}.", "{}.0", "{:+}", " {} "]))
def test_integers_survive_every_spelling(value: int, spelling: str) -> None:
    assert answer_of("Answer: " + spelling.format(value)) == str(value)


@given(st.fractions(max_denominator=999).filter(lambda f: abs(f) < 10**9))
def test_fractions_are_exact(value: Fraction) -> None:
    answer = normalise(f"{value.numerator}/{value.denominator}")
    assert answer is not None and answer.number == value
    again = normalise(answer.text)
    assert again == answer


@given(st.decimals(-(10**9), 10**9, places=6))
def test_decimals_are_exact(value: Decimal) -> None:
    answer = normalise(f"{value:f}")
    assert answer is not None and answer.number == Fraction(value)
    assert Decimal(answer.text) == value
