"""The verdict on a text against a gold answer, by real math-verify in real child processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.scoring.comparing.latex import too_costly
from rollout_ray.scoring.grader import Grader


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=2) as one:
        yield one


@pytest.mark.parametrize(
    ("gold", "text", "status"),
    [
        ("72", "Answer: 72", "correct"),
        ("72", "Answer: 72.00 dollars", "correct"),
        ("72", "Answer: 73", "incorrect"),
        ("1/3", "Answer: 0.333333", "incorrect"),
        ("0.5", "Answer: 50%", "correct"),
        ("50%", "\\boxed{0.5}", "correct"),
        ("50", "Answer: 50%", "correct"),
        ("Tom sold 48/2 = <<48/2=24>>24.\n#### 24", "Answer: 24", "correct"),
        ("72", "I cannot tell.", "no_answer"),
        ("72", "Answer: 71 or 72", "no_answer"),
        ("72", "Answer: 70, 71, 72, 73", "no_answer"),
        ("72", "Answer: unknown", "incorrect"),
        (None, "Answer: 72", "no_gold"),
        ("", "Answer: 72", "bad_gold"),
        ("5 or 6", "Answer: 5", "bad_gold"),
        ("Paris", "Answer: paris", "correct"),
        ("C", "\\boxed{\\text{(C)}}", "correct"),
        ("B", "\\boxed{\\text{(C)}}", "incorrect"),
        ("(3, 4)", "\\boxed{(3,4)}", "correct"),
        ("2, 3", "\\boxed{3, 2}", "correct"),
        ("x^2 + 2x + 1", "\\boxed{(x+1)^2}", "correct"),
        ("\\frac{\\sqrt{3}}{2}", "\\boxed{\\sqrt{3}/2}", "correct"),
        ("\\sqrt{2}", "\\boxed{2^{1/2}}", "correct"),
        ("\\sqrt{2}", "\\boxed{\\sqrt{3}}", "incorrect"),
        ("10!", "Answer: 3628800", "correct"),
        ("x + y = 0", "\\boxed{x - y = 0}", "incorrect"),
        ("x + y = 0", "\\boxed{2x + 2y = 0}", "correct"),
        ("0", "\\boxed{a + 3z = 0}", "incorrect"),
        ("x < 2", "\\boxed{-2x > -4}", "correct"),
        ("x < 2", "\\boxed{2x > 4}", "incorrect"),
        ("p = 351", "\\boxed{\\frac{1}{3}p - 3 = 114}", "correct"),
        ("\\csc x", "\\boxed{1/sin x}", "correct"),
        ("\\frac{1}{2^{2025}}", "\\boxed{2^{-2025}}", "correct"),
        ("2^{2025}", "\\boxed{3^{2025}}", "incorrect"),
        ("odd", "Answer: ddo", "incorrect"),
        ("\\frac{1}{2^{99}}", "\\boxed{\\frac{1}{2^{98}}}", "incorrect"),
        ("\\frac{1}{2^{99}}", "\\boxed{\\frac{2}{2^{100}}}", "correct"),
        ("\\sqrt{2}", "\\boxed{1.41421356}", "correct"),
        ("10^{-7}\\sqrt{2}", "\\boxed{0.0000002}", "incorrect"),
        ("|x|", "\\boxed{x}", "incorrect"),
        ("3xy", "\\boxed{3xz}", "incorrect"),
        ("x^2", "\\boxed{x²}", "correct"),
        ("100", "\\boxed{10²}", "correct"),
        ("1:2", "\\boxed{2:4}", "correct"),
        ("12:00", "\\boxed{1:00}", "incorrect"),
        ("19, 46, and 82", "\\boxed{19, 46, 82}", "correct"),
        ("e^{-x^2}", "\\boxed{\\frac{1}{e^{x^2}}}", "correct"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}", "correct"),
    ],
)
def test_the_verdict_on_a_text(grader: Grader, gold: str | None, text: str, status: str) -> None:
    assert grader.grade(gold, text).status == status


def test_the_answer_comes_with_the_grade(grader: Grader) -> None:
    assert grader.grade("72", "Answer: $72.00").answer == "72"
    assert grader.grade(None, "Answer: $72.00").answer == "72"
    assert grader.grade("72", "Answer: 5 or 6").answer is None


@pytest.mark.parametrize("answer", ["9^9^9^9", "((10!)!)!", "2^{2^{2^{100}}}", "9^{99999}", "1" * 150, "(((9^9)^9)^9)^9^9"])
def test_a_costly_expression_is_refused_and_never_called_incorrect(grader: Grader, answer: str) -> None:
    grade = grader.grade("\\sqrt{5}", f"\\boxed{{{answer}}}")
    assert too_costly(answer)
    assert grade.status == "error"


@pytest.mark.parametrize("answer", ["2^{100}", "x^2 y^2", "10!", "x^{n+1}", "3 \\times 10^5"])
def test_an_ordinary_expression_is_not_refused(answer: str) -> None:
    assert not too_costly(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "\\boxed{" * 200 + "5" + "}" * 200,
        "\\int_0^1 e^{-x^2} \\, dx",
        "{" * 300,
        "\\frac{1}{0}",
        "\x00\ud800".encode("utf-8", "replace").decode(),
        "9" * 100_000,
        "\\left(" * 100,
    ],
)
def test_a_hostile_answer_is_never_correct_and_the_grader_goes_on(grader: Grader, answer: str) -> None:
    assert grader.grade("\\sqrt{7}", f"\\boxed{{{answer}}}").status in ("incorrect", "no_answer", "error", "timeout")
    assert grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status == "correct"


def test_many_keep_their_order(grader: Grader) -> None:
    pairs = [(str(i), f"Answer: {i + (i % 3 == 0)}") for i in range(200)]
    statuses = [g.status for g in grader.grade_many(pairs)]
    assert statuses == ["incorrect" if i % 3 == 0 else "correct" for i in range(200)]


def child_pids() -> set[int]:
    """Grading children of this process that live now."""
    pids = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as command, open(f"/proc/{pid}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
                if parent == os.getpid() and "rollout_ray.scoring.sympy_worker" in command.read():
                    pids.add(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pids


def test_plain_numbers_start_no_child() -> None:
    before = child_pids()
    with Grader() as grader:
        grader.grade_many([("72", "Answer: 72"), ("1/2", "Answer: 0.5"), ("3", "no idea")])
        assert child_pids() == before


def test_a_prepared_grader_has_its_children_already() -> None:
    others = child_pids()
    with Grader(children=2) as grader:
        grader.prepare()
        prepared = child_pids() - others
        assert len(prepared) == 2
        assert grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status == "correct"
        assert child_pids() - others == prepared


def test_a_killed_child_is_replaced_and_the_comparison_made_again() -> None:
    others = child_pids()
    with Grader() as grader:
        assert grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status == "correct"
        (killed,) = child_pids() - others
        os.kill(killed, signal.SIGKILL)
        assert grader.grade("\\sqrt{12}", "\\boxed{2\\sqrt{3}}").status == "correct"
        assert len(child_pids() - others - {killed}) == 1
    assert child_pids() == others


@pytest.mark.usefixtures("long_computation")
def test_a_child_that_stays_silent_is_killed_and_called_a_timeout() -> None:
    others = child_pids()
    with Grader(timeout_s=1) as grader:
        assert grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status == "correct"
        (stopped,) = child_pids() - others
        os.kill(stopped, signal.SIGSTOP)
        assert grader.grade("\\sqrt{12}", "\\boxed{2\\sqrt{3}}").status == "timeout"
        assert stopped not in child_pids()
        assert grader.grade("\\sqrt{18}", "\\boxed{3\\sqrt{2}}").status == "correct"


def test_a_comparison_that_takes_too_long_is_a_timeout() -> None:
    with Grader(timeout_s=1) as grader:
        assert grader.grade("\\sqrt{7}", "\\boxed{\\prod_{k=1}^{999} (k^{999}+1)}").status == "timeout"


@pytest.mark.usefixtures("long_computation")
def test_a_comparison_beyond_its_memory_is_an_error_and_never_incorrect() -> None:
    others = child_pids()
    with Grader() as grader:
        assert grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status == "correct"
        (pid,) = child_pids() - others
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    with Grader(memory_mib=resident + 16, timeout_s=60) as grader:
        assert grader.grade("\\sqrt{7}", "\\boxed{\\sum_{k=1}^{999} \\binom{999}{k} k^{99}}").status == "error"
        assert grader.grade("\\sqrt{12}", "\\boxed{2\\sqrt{3}}").status == "correct"


def test_it_works_outside_the_main_thread() -> None:
    """math-verify's alarm does not; its children's main threads are why."""
    found: list[str] = []

    def work() -> None:
        with Grader() as grader:
            found.append(grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["correct"]


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integers_are_graded_by_value(gold: int, answer: int) -> None:
    with Grader() as grader:
        status = grader.grade(f"{gold:,}", f"Answer: {answer}.0").status
    assert status == ("correct" if gold == answer else "incorrect")
