"""Several values where the gold has several, whatever the spelling; a hedge where it has one.

Kind of report: EleutherAI/lm-evaluation-harness#3644 (several boxes), modelscope/ms-swift#4541 (`a = 1 or a = -2`),
huggingface/Math-Verify#13 and #14 (lists and sets).
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("2, 7", "\\boxed{2, 7}", True),
    ("2, 7", "\\boxed{7, 2}", True),
    ("2, 7", "\\boxed{2} and \\boxed{7}", True),
    ("2, 7", "\\boxed{2} and \\boxed{8}", False),
    ("2, 7", "The roots are $x = \\boxed{2}$ and $x = \\boxed{7}$.", True),
    ("2, 7", "\\boxed{x = 2 \\text{ or } x = 7}", True),
    ("2, 7", "\\boxed{x = 2 \\text{ or } x = 6}", False),
    ("2, 7", "Answer: x = 2, x = 7", True),
    ("2, 7", "Answer: 2", False),
    ("2, 7", "Answer: 2, 7, 9", False),
    ("2, 7", "Answer: 2, 2", False),
    ("2, 7", "Answer: 2 and 7", True),
    ("x=2, x=7", "\\boxed{\\{2, 7\\}}", True),
    ("\\{2, 7\\}", "\\boxed{2, 7}", True),
    ("\\{2, 7\\}", "\\boxed{\\{2, 5\\}}", False),
    ("\\pm 3", "\\boxed{3, -3}", True),
    ("3, -3", "\\boxed{\\pm 3}", True),
    ("\\pm 3", "\\boxed{3}", False),
    ("3", "\\boxed{\\pm 3}", False),
    ("1 \\pm \\sqrt{2}", "\\boxed{1 + \\sqrt{2}, 1 - \\sqrt{2}}", True),
    ("1 \\pm \\sqrt{2}", "\\boxed{1 + \\sqrt{2}, 1 - \\sqrt{3}}", False),
    ("1 \\pm \\sqrt{2}", "\\boxed{1 + \\sqrt{2}}", False),
    ("a = 4, b = 9", "\\boxed{a = 4, b = 9}", True),
    ("a = 4, b = 9", "\\boxed{b = 9, a = 4}", True),
    ("a = 4, b = 9", "\\boxed{a = 9, b = 4}", False),
    ("(4, 9)", "\\boxed{x = 4, y = 9}", True),
    ("(4, 9)", "\\boxed{x = 9, y = 4}", False),
    ("(4, 9)", "\\boxed{(x, y) = (4, 9)}", True),
    ("(4, 9)", "\\boxed{(9, 4)}", False),
    ("(1,2), (3,4)", "\\boxed{(3,4), (1,2)}", True),
    ("(1,2), (3,4)", "\\boxed{(1,2), (4,3)}", False),
    ("8", "Answer: 8 or 9", False),
    ("8", "Answer: either 8 or 9", False),
    ("8", "Answer: 8, possibly 9", False),
    ("8", "Answer: 8, 9", False),
    ("8", "\\boxed{8 \\text{ or } 9}", False),
    ("8", "\\boxed{8} or \\boxed{9}", False),
    ("9", "\\boxed{8} or \\boxed{9}", False),
    ("8", "The answer is \\boxed{8}, that is, \\boxed{8.0}.", True),
    ("0.5", "Answer: 1/2 or 0.5", True),
    ("0.5", "Answer: 1/2 or 0.6", False),
    ("0.75", "Answer: 3/4 (0.75)", True),
    ("1, 2, 3, \\ldots, 10", "\\boxed{1, 2, 3, \\ldots, 12}", False),
    ("\\sqrt{2}, 3", "Answer: $3$ and $\\sqrt{2}$", True),
    ("\\sqrt{2}, 3", "Answer: $3$ and $\\sqrt{5}$", False),
    ("12, 30, 42", "Answer: 12, 30 and 42", True),
]

test_lists = verdicts(CASES)
