"""Numbers as they are written: words, ordinals, recurring decimals, percentages, money, dates, other scripts.

Kind of report: IAAR-Shanghai/xVerify examples, verl-project/verl#295, huggingface/lighteval#202 and #686, the numeral tests
of NVIDIA/NeMo-Skills and of hkust-nlp/simpleRL-reason's grader.
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("12", "Answer: twelve", True),
    ("12", "Answer: twenty", False),
    ("12", "The answer is **Twelve**.", True),
    ("125", "Answer: one hundred and twenty-five", True),
    ("125", "Answer: one hundred and twenty", False),
    ("2300", "Answer: two thousand three hundred", True),
    ("-4", "Answer: negative four", True),
    ("-4", "Answer: minus 4", True),
    ("4", "Answer: negative 4", False),
    ("7", "Answer: the 7th", True),
    ("7", "Answer: 7th", True),
    ("7", "Answer: seventh", True),
    ("7", "Answer: 8th", False),
    ("0.5", "Answer: one half", True),
    ("\\frac{2}{3}", "Answer: two-thirds", True),
    ("\\frac{2}{3}", "Answer: one third", False),
    ("\\frac{1}{3}", "\\boxed{0.\\overline{3}}", True),
    ("\\frac{1}{3}", "\\boxed{0.3}", False),
    ("\\frac{1}{3}", "\\boxed{0.\\overline{4}}", False),
    ("\\frac{5}{6}", "\\boxed{0.8\\overline{3}}", True),
    ("0.\\overline{12}", "\\boxed{\\frac{12}{99}}", True),
    ("0.\\overline{12}", "\\boxed{0.12}", False),
    ("30%", "Answer: 0.3", True),
    ("30%", "Answer: 0.03", False),
    ("30%", "Answer: thirty percent", True),
    ("30\\%", "\\boxed{\\frac{3}{10}}", True),
    ("1250000", "Answer: 1.25 million", True),
    ("1250000", "Answer: 1.25 billion", False),
    ("1234.5", "Answer: $1,234.50", True),
    ("1234.5", "Answer: $1,243.50", False),
    ("4.75", "Answer: 4 dollars and 75 cents", True),
    ("4.75", "Answer: 4 dollars and 57 cents", False),
    ("4", "Answer: 4 dollars and 75 cents", False),
    ("2.25", "Answer: 2 1/4", True),
    ("2.25", "Answer: 2 and 1/4", True),
    ("2.25", "Answer: 2 3/4", False),
    ("3:45 p.m.", "Answer: 3:45 PM", True),
    ("3:45 p.m.", "Answer: 3:45 AM", False),
    ("6 p.m.", "Answer: 6 a.m.", False),
    ("-8", "Answer: −8", True),
    ("-8", "Answer: 8", False),
    ("8", "Answer: –8", False),
    ("15", "答案：15", True),
    ("15", "答案是 51。", False),
    ("3 \\times 10^{4}", "\\boxed{30000}", True),
    ("3 \\times 10^{4}", "\\boxed{3000}", False),
]

test_numbers = verdicts(CASES)
