"""Choices by letter or by text, yes and no with an explanation, names and words.

Kind of report: QwenLM/Qwen2.5-Math#29 (`\\text{Evelyn}`), huggingface/lighteval (a letter out of a sentence),
IAAR-Shanghai/xVerify examples, THUDM/slime#543.
"""

from __future__ import annotations

from tests.grading.tables import verdicts

CASES = [
    ("C", "The correct answer is C, since the slope is 4.", True),
    ("C", "The correct answer is D, since the slope is 4.", False),
    ("C", "The correct choice is (C).", True),
    ("C", "Answer: C) 40", True),
    ("C", "Answer: B) 40", False),
    ("\\textbf{(C)}\\ 40", "\\boxed{40}", True),
    ("\\textbf{(C)}\\ 40", "\\boxed{41}", False),
    ("\\textbf{(C)}\\ 40", "\\boxed{C}", True),
    ("\\textbf{(C)}\\ 40", "\\boxed{D}", False),
    ("40", "\\boxed{\\text{(C) }40}", True),
    ("40", "\\boxed{\\text{(C) }41}", False),
    ("40", "\\boxed{C}", False),
    ("C", "Answer: C or D", False),
    ("C", "Answer: not C", False),
    ("Yes", "Answer: Yes, because 7 is prime.", True),
    ("Yes", "Answer: No, because 7 is prime.", False),
    ("No", "Answer: No. There is a remainder of 2.", True),
    ("No", "Answer: Yes. There is no remainder.", False),
    ("Yes", "The answer is yes.", True),
    ("Yes", "Answer: yes and no", False),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", True),
    ("\\text{Evelyn}", "Answer: Evelyn", True),
    ("\\text{Evelyn}", "Answer: Evelyn, with an average speed of 4.5", True),
    ("\\text{Evelyn}", "Answer: Angela", False),
    ("\\text{Evelyn}", "Answer: Evelyn or Angela", False),
    ("Tuesday", "Answer: It is Tuesday.", True),
    ("Tuesday", "Answer: It is Thursday.", False),
    ("Tuesday", "Answer: It is not Tuesday.", False),
    ("\\text{ellipse}", "The answer is an ellipse.", True),
    ("\\text{ellipse}", "The answer is a hyperbola.", False),
]

test_choices = verdicts(CASES)
