"""Formulas: letters that are no units, degrees and radians, constants of integration, parameters, factorials, matrices.

Kind of report: huggingface/Math-Verify#69 (complex numbers), maths/moodle-qtype_stack#1229 (`+C`), evalscope#392,
EleutherAI/lm-evaluation-harness#2212, uw-nsl/TinyV HardVerify-Math.
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("2m + 5", "\\boxed{5 + 2m}", True),
    ("2m + 5", "\\boxed{5 + 2}", False),
    ("2m + 5", "\\boxed{2n + 5}", False),
    ("x + 2h", "\\boxed{2h + x}", True),
    ("x + 2h", "\\boxed{x + 2}", False),
    ("\\frac{L}{4}", "\\boxed{0.25L}", True),
    ("\\frac{L}{4}", "\\boxed{\\frac{1}{4}}", False),
    ("\\frac{\\pi}{4}", "\\boxed{45^\\circ}", True),
    ("\\frac{\\pi}{4}", "\\boxed{40^\\circ}", False),
    ("60^\\circ", "\\boxed{\\frac{\\pi}{3}}", True),
    ("60^\\circ", "\\boxed{\\frac{\\pi}{6}}", False),
    ("60^\\circ", "\\boxed{60}", True),
    ("x^2 + C", "\\boxed{x^2 + C}", True),
    ("x^2 + C", "\\boxed{x^2 + c}", True),
    ("x^2 + C", "\\boxed{x^3 + C}", False),
    ("\\sin x + C", "\\boxed{\\sin(x) + K}", True),
    ("\\sin x + C", "\\boxed{\\cos(x) + C}", False),
    ("\\binom{100}{50}", "\\boxed{\\frac{100!}{50! \\cdot 50!}}", True),
    ("\\binom{100}{50}", "\\boxed{\\frac{100!}{50! \\cdot 49!}}", False),
    ("\\frac{200!}{2}", "\\boxed{\\frac{1}{2} \\cdot 200!}", True),
    ("\\frac{200!}{2}", "\\boxed{\\frac{201!}{2}}", False),
    ("n!", "\\boxed{n \\cdot (n-1)!}", True),
    ("n!", "\\boxed{(n+1)!}", False),
    ("3 - 2i", "\\boxed{3 + -2i}", True),
    ("3 - 2i", "\\boxed{3 + 2i}", False),
    ("2k\\pi, k \\in \\mathbb{Z}", "\\boxed{2n\\pi, n \\in \\mathbb{Z}}", True),
    ("2k\\pi, k \\in \\mathbb{Z}", "\\boxed{k\\pi, k \\in \\mathbb{Z}}", False),
    ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\boxed{\\begin{bmatrix} 1 & 2 \\end{bmatrix}}", True),
    ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\boxed{\\begin{pmatrix} 2 & 1 \\end{pmatrix}}", False),
    ("5", "\\boxed{\\phantom{0}5}", True),
    ("7", "\\boxed{4 + \\phantom{3}}", False),
    ("2^{10}", "\\boxed{1024}", True),
]

test_expressions = verdicts(CASES)
