"""A table of (gold, text, whether a careful person calls it correct) as a parametrized test.

`python -m tests.grading.tables` prints, by file, how many verdicts are right, how many wrong values are paid, and the
slowest comparison.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rollout_ray.scoring.grader import Grader

Case = tuple[str, str, bool]


def verdicts(cases: Sequence[Case]) -> Callable[..., None]:
    """Return a test of every case: a right answer is correct, a wrong one has any status but correct and error."""

    @pytest.mark.parametrize(("gold", "text", "correct"), cases)
    def test(grader: Grader, gold: str, text: str, correct: bool) -> None:
        assert is_right(grader.grade(gold, text).status, correct), grader.grade(gold, text)

    return test


def is_right(status: str, correct: bool) -> bool:
    return status == "correct" if correct else status in ("incorrect", "no_answer")


def tables() -> dict[str, Sequence[Case]]:
    """Return every table by the name of its kind."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
    modules: dict[str, Any] = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
    return {name.removeprefix("test_"): module.CASES for name, module in modules.items() if hasattr(module, "CASES")}


def main() -> None:
    """Print the share of right verdicts by kind, and the wrong ones."""
    total = right = paid = 0
    slowest, wrong = (0.0, ""), []
    print("| kind | cases | right | wrong values paid |\n|---|---|---|---|")
    with Grader() as grader:
        grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}")  # starts the child process
        for kind, cases in tables().items():
            found = 0
            bad = 0
            for gold, text, correct in cases:
                begun = time.perf_counter()
                grade = grader.grade(gold, text)
                slowest = max(slowest, (time.perf_counter() - begun, f"{gold} | {text}"))
                found += is_right(grade.status, correct)
                bad += grade.status == "correct" and not correct
                if not is_right(grade.status, correct):
                    wrong.append((kind, gold, text, correct, grade.status, grade.answer))
            print(f"| {kind} | {len(cases)} | {found} | {bad} |")
            total, right, paid = total + len(cases), right + found, paid + bad
    print(f"| all | {total} | {right} | {paid} |\nslowest: {slowest}")
    for line in wrong:
        print(line)


if __name__ == "__main__":
    main()
