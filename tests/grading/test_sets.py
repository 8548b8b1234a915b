"""Intervals, inequalities and set-builders are one set, whichever side writes which.

Kind of report: huggingface/Math-Verify#49 (interval against inequality is asymmetric), ServiceNow/TapeAgents#109,
uw-nsl/TinyV HardVerify-Math.
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("(2, 5)", "\\boxed{2 < x < 5}", True),
    ("2 < x < 5", "\\boxed{(2, 5)}", True),
    ("(2, 5)", "\\boxed{2 \\le x < 5}", False),
    ("(2, 5)", "\\boxed{2 < x < 6}", False),
    ("[2, 5)", "\\boxed{2 \\le x < 5}", True),
    ("[2, 5)", "\\boxed{(2, 5)}", False),
    ("[2, \\infty)", "\\boxed{x \\ge 2}", True),
    ("[2, \\infty)", "\\boxed{x > 2}", False),
    ("x \\ge 2", "\\boxed{[2, \\infty)}", True),
    ("x \\ge 2", "\\boxed{x \\in [2, \\infty)}", True),
    ("x \\ge 2", "\\boxed{(-\\infty, 2]}", False),
    ("(-\\infty, 1) \\cup (4, \\infty)", "\\boxed{x < 1 \\text{ or } x > 4}", True),
    ("(-\\infty, 1) \\cup (4, \\infty)", "\\boxed{x < 1 \\text{ or } x \\ge 4}", False),
    ("x < 1 \\text{ or } x > 4", "\\boxed{(-\\infty, 1) \\cup (4, +\\infty)}", True),
    ("x < 1 \\text{ or } x > 4", "\\boxed{(1, 4)}", False),
    ("x > 1 \\text{ and } x < 4", "\\boxed{(1, 4)}", True),
    ("x > 1 \\text{ and } x < 4", "\\boxed{1 < x < 5}", False),
    ("\\{x \\mid x > 3\\}", "\\boxed{(3, \\infty)}", True),
    ("\\{x \\mid x > 3\\}", "\\boxed{x > 3}", True),
    ("\\{x \\mid x > 3\\}", "\\boxed{[3, \\infty)}", False),
    ("\\{x : 0 \\le x \\le \\frac{1}{2}\\}", "\\boxed{[0, 0.5]}", True),
    ("\\{x : 0 \\le x \\le \\frac{1}{2}\\}", "\\boxed{[0, 0.25]}", False),
    ("(-\\infty, 3) \\cup (3, \\infty)", "\\boxed{x \\ne 3}", True),
    ("(-\\infty, 3) \\cup (3, \\infty)", "\\boxed{x = 3}", False),
    ("(-\\infty, 3) \\cup (3, \\infty)", "\\boxed{\\mathbb{R} \\setminus \\{3\\}}", True),
    ("(-\\infty, \\infty)", "\\boxed{\\mathbb{R}}", True),
    ("(-\\infty, \\infty)", "Answer: all real numbers", True),
    ("[-\\sqrt{2}, \\sqrt{2}]", "\\boxed{-\\sqrt{2} \\le x \\le \\sqrt{2}}", True),
    ("[-\\sqrt{2}, \\sqrt{2}]", "\\boxed{-\\sqrt{2} < x < \\sqrt{2}}", False),
    ("\\left[\\frac{1}{3}, 2\\right]", "\\boxed{[1/3, 2]}", True),
]

test_sets = verdicts(CASES)
