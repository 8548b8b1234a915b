"""An equation answers with its last side where its left names the thing asked; a constraint is an answer of its own.

Kind of report: antirez/ds4#319 (`a+b+c = 12+25+25 = 62`), thinking and competition answers of the form `m+n = 293`,
scitix/sieval#28 (functional forms).
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("117", "\\boxed{m + n = 117}", True),
    ("117", "\\boxed{m + n = 118}", False),
    ("117", "Answer: p+q = 100 + 17 = 117", True),
    ("100", "Answer: p+q = 100 + 17 = 117", False),
    ("13", "\\boxed{|BC| = 13}", True),
    ("13", "\\boxed{BC = 13}", True),
    ("13", "\\boxed{|BC| = 12}", False),
    ("10", "\\boxed{f(3) = 10}", True),
    ("3", "\\boxed{f(3) = 10}", False),
    ("10", "Answer: $f(3) = 10$", True),
    ("\\frac{1}{2}", "\\boxed{\\cos\\theta = \\frac{1}{2}}", True),
    ("\\frac{1}{2}", "\\boxed{\\cos\\theta = \\frac{1}{3}}", False),
    ("\\frac{1}{6}", "\\boxed{P(A) = \\frac{1}{6}}", True),
    ("45", "\\boxed{\\angle ABC = 45^\\circ}", True),
    ("45", "\\boxed{\\angle ABC = 54^\\circ}", False),
    ("2x + 3y = 6", "\\boxed{4x + 6y = 12}", True),
    ("2x + 3y = 6", "\\boxed{4x + 6y = 13}", False),
    ("6", "\\boxed{2x + 3y = 6}", False),
    ("y = 2x + 1", "\\boxed{2x + 1}", True),
    ("y = 2x + 1", "\\boxed{y = 2x - 1}", False),
    ("x = 5", "\\boxed{y = 5}", False),
    ("18", "Answer: 9 * 2 = 18 dollars", True),
    ("9", "Answer: 9 * 2 = 18 dollars", False),
    ("2", "Answer: 9 * 2 = 18", False),
    ("24", "Answer: Total = 8 + 16 = $24", True),
    ("16", "Answer: Total = 8 + 16 = $24", False),
]

test_equations = verdicts(CASES)
