"""Golds as worked solutions in any usual format are read by the same rules as answers.

Kind of report: huggingface/open-r1#86, #293 and #503 (a gold that cannot be parsed), openai/grade-school-math solutions,
EleutherAI/lm-evaluation-harness#2212 (a gold that is not equal to itself).
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("He sprints 3*3=<<3*3=9>>9 times\nSo he runs 9*60=<<9*60=540>>540 meters\n#### 540", "Answer: 540", True),
    ("He sprints 3*3=<<3*3=9>>9 times\nSo he runs 9*60=<<9*60=540>>540 meters\n#### 540", "Answer: 9", False),
    ("Each pays 12 / 3 = 4.\nA: 4", "\\boxed{4}", True),
    ("Each pays 12 / 3 = 4.\nA: 4", "\\boxed{3}", False),
    ("Summing, we find that the total is $\\boxed{\\frac{7}{2}}$.", "Answer: 3.5", True),
    ("Summing, we find that the total is $\\boxed{\\frac{7}{2}}$.", "Answer: 7", False),
    ("We get 7 + 8 = 15.\n\nThe answer is 15.", "Answer: 15", True),
    ("We get 7 + 8 = 15.\n\nThe answer is 15.", "Answer: 8", False),
    ("<think>3 or 4?</think><answer>4</answer>", "Answer: 4", True),
    ("<think>3 or 4?</think><answer>4</answer>", "Answer: 3", False),
    ("Answer: 9 chickens, 10 rabbits", "Answer: 9 chickens, 10 rabbits", True),
    ("Answer: 9 chickens, 10 rabbits", "Answer: 9", False),
    ("5 red and 3 blue", "Answer: 5 red and 3 blue", True),
    ("5 red and 3 blue", "Answer: 5 red and 4 blue", False),
    ("eighteen", "Answer: 18", True),
    ("eighteen", "Answer: 8", False),
]

test_golds = verdicts(CASES)
