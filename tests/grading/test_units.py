"""Units have a dimension and a scale; a noun that differs, or a bare letter in a formula, is no unit.

Kind of report: modelscope/evalscope#392 (MATH-500 answers with units), huggingface/Math-Verify#13 (counts with nouns),
EleutherAI/lm-evaluation-harness#1204 (GSM8K answers with words behind them).
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("3 km", "Answer: 3000 m", True),
    ("3 km", "Answer: 3 km", True),
    ("3 km", "Answer: 3", True),
    ("3 km", "Answer: 300 m", False),
    ("3 km", "Answer: 3 cm", False),
    ("3 km", "Answer: 3 kg", False),
    ("90 minutes", "\\boxed{1.5 \\text{ hours}}", True),
    ("1.5 hours", "Answer: 90 min", True),
    ("90 minutes", "Answer: 90 hours", False),
    ("90 minutes", "Answer: 90 seconds", False),
    ("2 kg", "Answer: 2000 grams", True),
    ("2 kg", "Answer: 2 g", False),
    ("\\$2.50", "Answer: 250 cents", True),
    ("\\$2.50", "Answer: $2.50", True),
    ("\\$2.50", "Answer: 2.50 dollars", True),
    ("\\$2.50", "Answer: 2.50 cents", False),
    ("\\$20", "\\boxed{20 \\text{ euros}}", False),
    ("60 \\text{ mph}", "Answer: 60 miles per hour", True),
    ("60 \\text{ mph}", "Answer: 60 km/h", False),
    ("36 km/h", "Answer: 10 m/s", True),
    ("15 \\text{ cm}^2", "\\boxed{15 \\text{ square centimeters}}", True),
    ("15 \\text{ cm}^2", "\\boxed{15 \\text{ cm}^3}", False),
    ("15 \\text{ cm}^2", "\\boxed{15}", True),
    ("5 apples", "Answer: 5 apples.", True),
    ("5 apples", "Answer: 5", True),
    ("5 apples", "Answer: 5 oranges", False),
    ("1 \\text{ foot}", "Answer: 12 inches", True),
    ("1 \\text{ foot}", "Answer: 1 inch", False),
    ("3", "\\boxed{3m}", False),
    ("2x", "\\boxed{2}", False),
    ("500 mL", "Answer: 0.5 liters", True),
    ("500 mL", "Answer: 500 L", False),
]

test_units = verdicts(CASES)
