"""Pairs of answers from the public tests of other graders, each with its origin, and our verdict on each.

A line of grading_cases.jsonl: `source`, `gold`, the given `answer` (as the content of a box) or a whole `text`, whether
the source says that they are `equal`; where we say otherwise `ours`, our status, and in `note` why. Of a source's long
texts only the end with the answer is kept.
`python -m tests.test_grading_cases` prints the agreement by source and the slowest comparison.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rollout_ray.scoring.grader import Grade, Grader

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "grading_cases.jsonl").read_text().splitlines()
]


def pair(case: dict[str, Any]) -> tuple[str, str]:
    """What the grader is given: the gold answer and a model's text."""
    return case["gold"], case["text"] if "text" in case else f"\\boxed{{{case['answer']}}}"


def agrees(case: dict[str, Any], status: str) -> bool:
    return status in (["correct"] if case["equal"] else ["incorrect", "no_answer"])


@pytest.fixture(scope="module")
def grades() -> list[Grade]:
    with Grader(timeout_s=30) as grader:
        return grader.grade_many([pair(case) for case in CASES])


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i]['source'].split()[0]}")
def test_the_verdict_agrees_or_says_why_not(grades: list[Grade], index: int) -> None:
    case, status = CASES[index], grades[index].status
    if "ours" in case:
        assert status == case["ours"] and case["note"] and not agrees(case, status), case
    else:
        assert agrees(case, status), case


def test_there_are_enough_cases_and_nearly_all_agree() -> None:
    assert len(CASES) >= 300
    assert sum("ours" in case for case in CASES) <= 0.07 * len(CASES)
    assert len({(case["source"], *pair(case)) for case in CASES}) == len(CASES)


def main() -> None:
    """Prints a table of the agreement by source and of the slowest comparison."""
    cases, agreeing, slowest = Counter[str](), Counter[str](), {}
    with Grader(timeout_s=30) as grader:
        grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}")  # starts the child
        for case in CASES:
            begun = time.perf_counter()
            status = grader.grade(*pair(case)).status
            seconds, source = time.perf_counter() - begun, case["source"]
            cases[source] += 1
            agreeing[source] += agrees(case, status)
            slowest[source] = max(slowest.get(source, (0.0, "")), (seconds, " ".join(pair(case))))
    print("| source | cases | agree | slowest, s |\n|---|---|---|---|")
    for source in cases:
        print(f"| {source} | {cases[source]} | {agreeing[source]} | {slowest[source][0]:.2f} |")
    seconds, which = max(slowest.values())
    print(f"| all | {cases.total()} | {agreeing.total()} | {seconds:.2f} |\nslowest: {which}")


if __name__ == "__main__":
    main()
