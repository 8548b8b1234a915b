"""The ways in which models write an answer, and what must not pass for one, each against a gold answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout_ray.scoring.grader import Grader, read_gold


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=10) as one:
        yield one


SAME: list[tuple[str, list[str]]] = [
    # bold type within the line
    ("72", ["The answer is **72** clips.", "**Answer:** Natalia sold **72 clips** altogether."]),
    ("72", ["**Answer:** **72** clips", "Answer: __72__ clips", "<answer>**72** clips</answer>", "Answer: ***72*** clips"]),
    ("18", ["Answer: Janet makes **$18** every day."]),
    # the placeholder of a system prompt
    ("72", ["Answer: <72>", "**Answer: <72>**", "Answer: <72> clips", "Answer: <$72>", "Answer: <number>72</number>"]),
    ("72", ["#### <72>", "Answer: <number> 72", "Answer: <72 clips>"]),
    ("-5", ["Answer: <-5>", "so x is −5"]),
    ("x < 5", ["Answer: x <5"]),
    # markers, and judgements that are none
    ("18", ["\\boxed{18}\n\nLet me check: 9*2 = 18, so the answer is correct.", "Answer: 18\n\nThe answer is reasonable."]),
    ("18", ["Answer: 18\nThe final answer is indeed right.", "#### 18\n(The answer is also confirmed.)"]),
    ("B", ["So the correct answer is (B).", "The best answer is B."]),
    ("72", ["The right answer is 72, because it takes 24 more.", "The answer is 72 because 48 + 24 is."]),
    # display maths and code on lines of their own
    ("18", ["the final answer is:\n\\[\n18\n\\]", "Answer:\n$$\n18\n$$", "Answer:\n```\n18\n```", "Answer: \\[\n18"]),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", ["Answer:\n\\[\n\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}\n\\]\n."]),
    # units
    ("45", ["\\boxed{45 \\text{ m}^2}", "Answer: 45 m²", "\\boxed{45\\,\\mathrm{m^2}}"]),
    ("12\\text{ m}^2", ["\\boxed{12}", "\\boxed{12\\text{ m}^2}"]),
    ("36\\pi", ["\\boxed{36\\pi\\text{ cm}^2}", "\\boxed{A = 36\\pi\\mbox{ m}}", "Answer: 36π cm²"]),
    ("18", ["Answer: 18 m/s", "\\boxed{18\\text{ L}}", "Answer: 18 sec", "Answer: 18 L", "Answer: 18 g"]),
    ("18 L", ["Answer: 18 L", "\\boxed{18\\text{ L}}"]),
    ("2\\sqrt{3}", ["Answer: 2√3 cm", "\\boxed{2\\sqrt{3}\\text{ units}}"]),
    # dates and times
    ("\\text{June 20}", ["\\boxed{\\text{June 20}}", "Answer: 20th of June", "Answer: June 20th"]),
    ("24", ["Answer: In May 24 clips were sold."]),
    ("2:30 PM", ["Answer: 2:30 pm", "Answer: 2:30 p.m.", "\\boxed{2:30\\text{ PM}}"]),
    # lists
    ("\\sqrt{2},-\\sqrt{2}", ["\\boxed{\\sqrt{2} \\text{ and } -\\sqrt{2}}"]),
    ("\\sqrt{2} \\text{ and } -\\sqrt{2}", ["\\boxed{\\sqrt{2}, -\\sqrt{2}}"]),
    ("(1,2),(3,4)", ["\\boxed{(1,2) \\text{ and } (3,4)}"]),
    ("(1,2) \\text{ and } (3,4)", ["\\boxed{(1,2),(3,4)}"]),
    ("18", ["Answer: 18 dollars, 2 more than yesterday", "Answer: 18 dollars, which is 2 dollars more"]),
    # a restatement behind the label of a step
    ("18", ["## Step 1: Restate\nProblem: Janet's ducks lay 16 eggs\n\n## Step 2: Solve\nAnswer: 18"]),
    ("18", ["**1. Restate**\n\nProblem: ducks lay eggs\n\n2. Answer: 18", "1) Read\nQuestion: how many?\nAnswer: 18"]),
    ("18", ["1. 9 * 2 = 18\n\nProblem: the next\nAnswer: 5", "18.\n\nProblem: the next\nAnswer: 5"]),
    # asides, large numbers, a full stop of another script
    ("120", ["Answer: 120 minutes (2 hours)", "Answer: 120 (2 hours)"]),
    ("18", ["Answer: 18 dollars (9 eggs × $2)", "Answer: 18 (rounded to 2 digits)", "Answer: 18。"]),
    ("1500000", ["Answer: 1.5 million", "\\boxed{1.5\\text{ million}}", "Answer: 1 1/2 million dollars"]),
    ("1.5 million", ["Answer: 1500000", "Answer: $1,500,000"]),
    # fractions without braces
    ("\\frac{\\pi}{4}", ["\\boxed{\\frac\\pi4}", "\\boxed{\\dfrac\\pi{4}}", "\\boxed{\\frac{\\pi}4}"]),
    ("\\frac{ab}c", ["\\boxed{\\frac{ab}{c}}"]),
    ("\\frac{x}{\\sqrt{2}}", ["\\boxed{\\frac x{\\sqrt{2}}}"]),
    # bases
    ("35_8", ["\\boxed{35_{8}}", "\\boxed{35}"]),
    # multiple choice
    ("B", ["Answer: B) 12", "The answer is (B) 12.", "\\boxed{\\textbf{(B)}\\ 12}", "Answer: B. Mitochondria"]),
    ("(B)", ["Answer: Option B", "\\boxed{(B)}", "Answer: **(B)** 12 cm", "\\boxed{\\text{Choice (B)}}", "Answer: B)"]),
    ("\\text{B}", ["\\boxed{B: 12}", "Answer: B. 12 apples", "Answer: (B) 5 or 6", "Answer: b) 12"]),
    ("C", ["Answer: C)", "\\boxed{C)}", "Answer: C, because A and B are not"]),
]  # fmt: skip

OTHER: list[tuple[str, str, str]] = [
    ("8", "Answer: x**2", "incorrect"),
    ("1", "Answer: <1,2>", "incorrect"),
    ("5", "Answer: <5", "incorrect"),
    ("3", "\\boxed{3\\text{ million}}", "incorrect"),
    ("1.5", "Answer: 1.5 million", "incorrect"),
    ("2", "Answer: 2 sec 60", "incorrect"),
    ("17", "Answer: 17 eggs, 18 eggs, 19 eggs", "no_answer"),
    ("17", "Answer: 17 dollars; 18 dollars", "no_answer"),
    ("17", "Answer: 17 dollars / 18 dollars", "incorrect"),
    ("9", "Answer: 9 for Tom, 18 for Jane", "no_answer"),
    ("\\text{June 20}", "\\boxed{\\text{July 20}}", "incorrect"),
    ("May 5, 2020", "Answer: May 5, 2021", "incorrect"),
    ("May 5", "Answer: It is on June 5", "incorrect"),
    ("2:30 PM", "Answer: 2:30 AM", "incorrect"),
    ("2", "Answer: 2√3 cm", "incorrect"),
    ("2", "Answer: 2 × 3 units", "incorrect"),
    ("2", "Answer: 2 ± 1 cm", "no_answer"),
    ("\\sqrt{2}", "\\boxed{\\sqrt{2} \\text{ or } \\sqrt{3}}", "no_answer"),
    ("\\sqrt{2}", "\\boxed{\\sqrt{2} \\text{ and } \\sqrt{3}}", "no_answer"),
    ("2", "\\boxed{2 m and 3 m}", "no_answer"),
    ("3", "Answer: 3 apples and 4 pears", "no_answer"),
    ("18", "Answer: 18 (or 17)", "no_answer"),
    ("18", "Answer: 18 (maybe 17)", "incorrect"),
    ("1", "Answer: 1 (mod 3)", "incorrect"),
    ("2", "Answer: 2 (x+1)", "incorrect"),
    ("2", "Answer: 2 (sin x)", "incorrect"),
    ("1", "Answer: (1, 2) and (3, 4)", "no_answer"),
    ("35_8", "\\boxed{35_6}", "incorrect"),
    ("A", "Answer: B) 12", "incorrect"),
    ("A", "Answer: A mitochondrion", "incorrect"),
    ("A", "Answer: (A) and (B)", "no_answer"),
    ("A", "Answer: Option A or B", "no_answer"),
    ("A", "Answer: (A) 12, (B) 13", "no_answer"),
]


@pytest.mark.parametrize(("gold", "text"), [(gold, text) for gold, texts in SAME for text in texts])
def test_a_spelling_of_the_gold_is_correct(grader: Grader, gold: str, text: str) -> None:
    assert grader.grade(gold, text).status == "correct"


@pytest.mark.parametrize(("gold", "text", "status"), OTHER)
def test_what_only_looks_like_the_gold_is_not(grader: Grader, gold: str, text: str, status: str) -> None:
    assert grader.grade(gold, text).status == status


@pytest.mark.parametrize("gold", ["x > 2 and x < 5", "3 \\text{ apples and } 4 \\text{ pears}", "\\sqrt{2} \\text{ or } 2"])
def test_a_gold_that_joins_values_is_read(grader: Grader, gold: str) -> None:
    assert read_gold(gold) is not None
    assert grader.grade(gold, f"\\boxed{{{gold}}}").status == "correct"
