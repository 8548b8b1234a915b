"""A phrase with two numbers, or with a word that negates, compares or scales, is never its first number.

Kind of report: huggingface/Math-Verify#13, StarsfieldAI/R1-V#38 (a count out of a sentence with many numbers),
open-compass/opencompass#1818 (the last number of a sentence).
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("12 hours 15 minutes", "Answer: 12 hours 15 minutes", True),
    ("12 hours 15 minutes", "Answer: 12 hours and 15 minutes", True),
    ("12 hours 15 minutes", "Answer: 735 minutes", True),
    ("12 hours 15 minutes", "Answer: 12 hours 50 minutes", False),
    ("12", "Answer: 12 hours 15 minutes", False),
    ("6 feet 2 inches", "Answer: 6 feet 3 inches", False),
    ("6 feet 2 inches", "Answer: 74 inches", True),
    ("8 remainder 1", "Answer: 8 remainder 1", True),
    ("8 remainder 1", "Answer: 8 R 1", True),
    ("8 remainder 1", "Answer: 8", False),
    ("8", "Answer: 8 remainder 1", False),
    ("4 m by 6 m", "Answer: 4 m by 6 m", True),
    ("4 m by 6 m", "Answer: 4 m by 7 m", False),
    ("4", "Answer: 4 m by 6 m", False),
    ("7 cows, 5 hens", "Answer: 7 cows and 5 hens", True),
    ("7 cows, 5 hens", "Answer: 7 cows and 6 hens", False),
    ("7 cows, 5 hens", "Answer: 5 cows and 7 hens", False),
    ("7", "Answer: 7 cows and 5 hens", False),
    ("15", "Answer: at least 15", False),
    ("15", "Answer: at most 15", False),
    ("15", "Answer: more than 15", False),
    ("15", "Answer: less than 15", False),
    ("15", "Answer: isn't 15", False),
    ("15", "Answer: 15 more than 4", False),
    ("15", "Answer: 15 times as many", False),
    ("15", "Answer: twice 15", False),
    ("30", "Answer: twice 15", True),
    ("15", "Answer: a quarter of 15", False),
    ("4", "Answer: a quarter of 16", True),
    ("24", "Answer: 2 dozen", True),
    ("2", "Answer: 2 dozen eggs", False),
    ("25% decrease", "Answer: 25% increase", False),
    ("25% decrease", "Answer: a 25% decrease", True),
    ("8 km east", "Answer: 8 km west", False),
    ("8 km east", "Answer: 8 km east", True),
    ("3", "Answer: 3 out of 4", False),
    ("1", "Answer: 1 in 6", False),
    ("15", "Answer: 15 squared", False),
    ("15", "Answer: 15 to 20", False),
    ("9", "Answer: 3 times 3", True),
]

test_phrases = verdicts(CASES)
