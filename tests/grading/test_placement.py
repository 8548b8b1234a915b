"""The answer's place: its sentence, corrections and checks behind it, run-on turns, JSON, headings, base-model habits.

Kind of report: sgl-project/sglang#29933 (run-on few-shot turns), huggingface/lighteval#686 (text after the answer),
EleutherAI/lm-evaluation-harness#1204, open-compass/opencompass#1818 (the last number is not the answer).
"""

from __future__ import annotations

from tests.grading.tables import verdicts

FEW_SHOT = " There were 15 trees, now 21. 21 - 15 = 6. The answer is 6.\n\nQ: 3 cars and 2 arrive.\n\nA: The answer is 5."
MATRIX = "\\begin{pmatrix} 3 & 1 \\\\ 0 & 2 \\end{pmatrix}"
CASES = [
    ("21", "The answer is 21. To verify: 21 / 3 = 7.", True),
    ("7", "The answer is 21. To verify: 21 / 3 = 7.", False),
    ("21", "Answer: 21\n\nCheck: 21 / 3 = 7, as it should be.", True),
    ("21", "Answer: 21 apples. This makes 42 with the other 21.", True),
    ("42", "Answer: 21 apples. This makes 42 with the other 21.", False),
    ("21", "7 * 3 = 21\n\nLet me know if you want to see 2 more examples!", True),
    ("2", "7 * 3 = 21\n\nLet me know if you want to see 2 more examples!", False),
    ("21", "So there are 21 apples left.\n\nI hope this helps! Feel free to ask 1 more question.", True),
    ("8", "Answer: 9. Wait, I made a mistake. It should be 8.", True),
    ("9", "Answer: 9. Wait, I made a mistake. It should be 8.", False),
    ("8", "The answer is 9, no, actually 8.", True),
    ("9", "The answer is 9, no, actually 8.", False),
    ("8", "The answer is 9. Correction: the answer is 8.", True),
    ("9", "\\boxed{9}. Hmm, that is wrong. \\boxed{8}", False),
    ("8", "\\boxed{9}\n\nHmm, that is wrong.\n\n\\boxed{8}", True),
    ("9", "\\boxed{9}\n\nHmm, that is wrong.\n\n\\boxed{8}", False),
    ("14", "**Final Answer**\n\n14", True),
    ("14", "### Final Answer\n$14$\n\nThis used 3 steps.", True),
    ("3", "### Final Answer\n$14$\n\nThis used 3 steps.", False),
    ("14", "## Final Answer:\n\n**14 marbles**", True),
    ("14", '```json\n{"reasoning": "7 * 2", "answer": 14}\n```', True),
    ("2", '```json\n{"reasoning": "7 * 2", "answer": 14}\n```', False),
    ("14", '{"final_answer": "14 marbles", "steps": 3}', True),
    ("3", '{"final_answer": "14 marbles", "steps": 3}', False),
    ("6", FEW_SHOT, True),
    ("5", FEW_SHOT, False),
    ("6", "Answer: 6\n\nQuestion: Tom has 4 cats and buys 1.\nAnswer: 5", True),
    ("5", "Answer: 6\n\nQuestion: Tom has 4 cats and buys 1.\nAnswer: 5", False),
    ("6", "6 trees.\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:\n5", True),
    ("6", "#### 6\n\nHuman: What is 2 + 3?\n\nAssistant: #### 5", True),
    ("5", "#### 6\n\nHuman: What is 2 + 3?\n\nAssistant: #### 5", False),
    ("6", "<|im_start|>assistant\nThe answer is 6.<|im_end|>\n<|im_start|>user\nAnd 2 + 3?", True),
    ("6", "The answer is:\n\n$$\\boxed{6}$$\n\nThus 6 trees were planted on day 2.", True),
    ("2", "The answer is:\n\n$$\\boxed{6}$$\n\nThus 6 trees were planted on day 2.", False),
    ("6", "The workers planted 6 trees today.", True),
    ("6", "Final answer: 6 trees, which is what was asked.", True),
    ("6", "The answer would be 6.", True),
    ("6", "ANSWER: 6", True),
    ("6", "Answer - I don't know. It may be 6 or 7.", False),
    ("6", "The answer is not 6.", False),
    ("6", "I think the answer is 5. The answer is not 6.", False),
    ("5", "I think the answer is 5. The answer is not 6.", True),
    ("x+1", "**Answer:**\n\n$$\nx+1\n$$\n", True),
    ("x+1", "**Answer:**\n\n$$\nx-1\n$$\n", False),
    (MATRIX, "The answer is $\\begin{pmatrix} 3 & 1 \\\\\n0 & 2 \\end{pmatrix}$.", True),
    (MATRIX, "The answer is $\\begin{pmatrix} 3 & 0 \\\\\n1 & 2 \\end{pmatrix}$.", False),
]

test_placement = verdicts(CASES)
