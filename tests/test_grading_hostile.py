"""Texts that would hang, fill, deceive or take over a grader, as answer and as gold; and grading processes that are killed.

`python -m tests.test_grading_hostile` prints what a user gets for each, with the default limits, and in what time.
"""

from __future__ import annotations

import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray import scoring
from rollout_ray.core.errors import GradingError
from rollout_ray.core.records import ScoreStatus
from rollout_ray.scoring.grader import Grade, Grader
from rollout_ray.scoring.grader_process import START_SECONDS, silent_seconds
from tests.conftest import ROOT, await_that

MATRIX = "\\begin{{pmatrix}}{}\\end{{pmatrix}}"
UNKNOWNS = MATRIX.format("a&b&c&d\\\\e&f&g&h\\\\i&j&k&l\\\\m&n&o&p")

# name: (text, its status as the boxed answer to \sqrt{7}). The texts are written out where they can be.
HOSTILE: dict[str, tuple[str, str]] = {
    # evaluation without end
    "9^9^9^9": ("9^9^9^9", "error"),
    "((10!)!)!": ("((10!)!)!", "error"),
    "10**10**8": ("10**10**8", "error"),
    "10^{999999999}": ("10^{999999999}", "error"),
    "1e999999999": ("1e999999999", "incorrect"),
    "2⁹⁹⁹⁹⁹⁹⁹": ("2⁹⁹⁹⁹⁹⁹⁹", "error"),
    "e^{e^{e^{79}}}": ("e^{e^{e^{79}}}", "error"),
    "((9^{999})^{999})^{999}": ("((9^{999})^{999})^{999}", "timeout"),
    "{{10^{999}}^{999}}^{999}": ("{{10^{999}}^{999}}^{999}", "timeout"),
    "(((x+1)^{99}+1)^{99}+1)^{99}": ("(((x+1)^{99}+1)^{99}+1)^{99}", "timeout"),
    "(x+y+z)^{999}": ("(x+y+z)^{999}", "timeout"),
    "\\binom{999999999}{499999999}": ("\\binom{999999999}{499999999}", "timeout"),
    "\\binom{99999}{49999}^{99}": ("\\binom{99999}{49999}^{99}", "incorrect"),
    "\\Gamma(99999999)": ("\\Gamma(99999999)", "timeout"),
    "\\prod_{k=1}^{999} (k^{999}+1)": ("\\prod_{k=1}^{999} (k^{999}+1)", "timeout"),
    "\\sum_{k=1}^{99999999} k^{-7}": ("\\sum_{k=1}^{99999999} k^{-7}", "error"),
    "\\sin(10^{9999})": ("\\sin(10^{9999})", "incorrect"),
    "\\sqrt{2^{9999}+1}": ("\\sqrt{2^{9999}+1}", "incorrect"),
    "\\int \\sqrt{\\tan x} \\ln(\\sin x) dx": ("\\int \\sqrt{\\tan x} \\ln(\\sin x) dx", "incorrect"),
    "a system that no solver solves": ("x^7 + x^5 y^3 + \\sin(xy) + e^{x+y} = \\ln(x^2+y^2)", "incorrect"),
    "x^{360}-1 = 0": ("x^{360}-1 = 0", "incorrect"),
    "inverse of a 4x4 of unknowns": (UNKNOWNS + "^{-1}", "incorrect"),
    "det of a 4x4 of unknowns": ("\\det" + UNKNOWNS, "incorrect"),
    # size
    "100,000 characters": ("7" * 100_000, "error"),
    "1 MB without spaces": ("a" * 1_000_000, "no_answer"),
    "50,000 terms": ("x+" * 50_000, "no_answer"),
    "299 digits": ("9" * 299, "error"),
    "5,000 digits": ("9" * 5_000, "no_answer"),
    "fraction of 140 digits": ("\\frac{" + "1" * 140 + "}{" + "3" * 140 + "}", "error"),
    "matrix of 1,024 entries": (MATRIX.format("\\\\".join(["&".join("1" * 32)] * 32)), "no_answer"),
    "set of 90": ("\\{" + ",".join(map(str, range(90))) + "\\}", "incorrect"),
    "interval up to 10^{9999}": ("(-\\infty, 10^{9999}]", "incorrect"),
    # nesting
    "boxes 200 deep": ("\\boxed{" * 200 + "5" + "}" * 200, "no_answer"),
    "boxes 100,000 deep": ("\\boxed{" * 100_000, "no_answer"),
    "300 opening braces": ("{" * 300, "no_answer"),
    "braces 140 deep": ("{" * 140 + "5" + "}" * 140, "incorrect"),
    "brackets 140 deep": ("(" * 140 + "x" + ")" * 140, "incorrect"),
    "\\left( 20 deep": ("\\left(" * 20 + "x" + "\\right)" * 20, "incorrect"),
    "\\frac bomb": ("\\frac{1}{" * 29 + "2" + "}" * 29, "incorrect"),
    "\\frac without braces": ("\\frac" * 58, "incorrect"),
    "\\sqrt bomb": ("\\sqrt{" * 42 + "2" + "}" * 42, "incorrect"),
    "\\text bomb": ("\\text{" * 40 + "a" + "}" * 40, "incorrect"),
    # code
    "__import__('os').system(...)": ("__import__('os').system('touch owned')", "incorrect"),
    "\\sqrt{__import__(...)}": ("\\sqrt{__import__('os').system('touch owned')}", "incorrect"),
    "().__class__.__base__": ("().__class__.__base__.__subclasses__()", "incorrect"),
    "open('owned','w')": ("open('owned','w')", "incorrect"),
    "\\write18": ("\\immediate\\write18{touch owned}", "incorrect"),
    "\\input{/etc/passwd}": ("\\input{/etc/passwd}", "incorrect"),
    "\\def that calls itself": ("\\def\\a{\\a\\a}\\a", "incorrect"),
    # bytes
    "lone surrogates": ("\ud800\udfff", "incorrect"),
    "a surrogate in a root": ("\\sqrt{\ud800}", "incorrect"),
    "NUL": ("\x00", "no_answer"),
    "NUL in a root": ("\\sqrt{2\x00}", "incorrect"),
    "bidi override": ("\u202e27\u202c", "incorrect"),
    "Arabic digits": ("٣٤", "incorrect"),
    "a hundred combining marks": ("7" + "\u0301" * 100, "incorrect"),
    "a ligature of 18 characters, 250 times": ("\ufdfa" * 250, "no_answer"),
    "250 backslashes": ("\\" * 250, "no_answer"),
    "100,000 backslashes": ("\\" * 100_000, "no_answer"),
    # bait for regular expressions
    "290 a and a !": ("a" * 290 + "!", "incorrect"),
    "1, 280 spaces, x": ("1" + " " * 280 + "x", "incorrect"),
    "290 minus signs": ("-" * 290 + "1", "incorrect"),
    "290 equals signs": ("=" * 290, "incorrect"),
    "x= 140 times": ("x=" * 140 + "5", "incorrect"),
    "1/1/1/...": ("1" + "/1" * 140, "incorrect"),
    # what has no value
    "\\frac{1}{0}": ("\\frac{1}{0}", "incorrect"),
    "\\infty-\\infty": ("\\infty-\\infty", "incorrect"),
    "nan": ("nan", "incorrect"),
}  # fmt: skip
GOLD = "\\sqrt{7}"
TIMEOUT_S = 1
LONGEST_S = silent_seconds(TIMEOUT_S) + START_SECONDS  # until a process is killed, and a new one starts on a busy machine


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=TIMEOUT_S) as one:
        assert one.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}").status == "correct"
        yield one


def checked(grader: Grader, gold: str, text: str) -> tuple[Grade, float]:
    begun = time.monotonic()
    grade = grader.grade(gold, text)
    assert grade.status in get_args(ScoreStatus)
    assert pa.array([grade.answer, grade.reasoning], pa.string()).null_count == (grade.answer is None)
    return grade, time.monotonic() - begun


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_gets_its_status_in_bounded_time(
    grader: Grader, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, expected = HOSTILE[name]
    as_answer, seconds = checked(grader, GOLD, f"\\boxed{{{text}}}")
    # Some are decided on a fast machine and time out on a slow one; never is a timeout expected and a verdict found.
    assert as_answer.status in (expected, "timeout")
    assert seconds < LONGEST_S
    as_gold, seconds = checked(grader, text, f"\\boxed{{{GOLD}}}")
    assert as_gold.status in ("incorrect", "bad_gold", "error", "timeout")
    assert seconds < LONGEST_S
    assert checked(grader, "72", f"Answer: {text}")[1] < LONGEST_S
    assert checked(grader, "12", "\\boxed{\\sqrt{144}}")[0].status == "correct"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "equation",
    [
        HOSTILE["a system that no solver solves"][0],
        "x^{99}+y^{98}+z^{97}=\\sin(xyz)",
        "x^{x^{x}}=y^{y^{y}}",
        "x^5-x+1=0",
        "x=x+1",
    ],
)
def test_an_equation_that_no_solver_solves(grader: Grader, equation: str) -> None:
    for gold, answer in (("x^2+y^2=1", equation), (equation, "x^2+y^2=1")):
        grade, seconds = checked(grader, gold, f"\\boxed{{{answer}}}")
        assert grade.status in ("incorrect", "error", "timeout") and seconds < LONGEST_S


def test_the_grading_process_can_write_no_file_and_start_no_process(tmp_path: Path) -> None:
    """Should a text ever get code to run there, this is what it meets."""
    script = f"""
import os, socket, subprocess, sys
from rollout_ray.scoring import sympy_worker
sys.addaudithook(sympy_worker.refuse)
for attempt in (
    lambda: open({str(tmp_path / "owned")!r}, "w"),
    lambda: os.open({str(tmp_path / "owned")!r}, os.O_CREAT | os.O_RDWR),
    lambda: os.system("true"),
    lambda: subprocess.run(["true"]),
    lambda: os.fork(),
    lambda: os.remove({__file__!r}),
    lambda: socket.create_connection(("127.0.0.1", 9)),
):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("not refused")
assert open({__file__!r}).read(1)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())


BAIT = ["1", "1,", "1 ", "1/", "-", " ", "\\boxed{", "Answer: ", "<think>", "Problem: x\n", "{", "1 1/", "####", "^9", "^{",
        "\\frac", "\\frac{1}", "\\text{", "a", "a ", "a_", "(", "$", "$a", "\\(", "<|", "<|a|>", "=", "x=", "1!", "\n", "#",
        "1 percent", "²", "\\", "{,}1", "1:", "1e-", "1.", "and ", "sqrt(", "sin", "**", "^(", "\\begin{a", "the answer is",
        "5\u00bd", "\u00a0000", "^\\circ", "cm^2", "\ud800", "Step 1 ", "1. ", "**a", "(ab ", "1 million ",
        "1\\text{m}", "\\frac1", "<1", "2 eggs, ", "June 2", "A) ", " because", "12:30 p.m.", "1_2", "√2 cm"]  # fmt: skip
MODULES = [import_module(module.name) for module in pkgutil.walk_packages(scoring.__path__, "rollout_ray.scoring.")]
PATTERNS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_regular_expression_is_linear(name: str) -> None:
    """5 microseconds a character; a quadratic one takes a thousand times that on texts of this length."""
    for bait in BAIT:
        text = bait * (40_000 // len(bait)) + "!"
        begun = time.process_time()
        for _ in PATTERNS[name].finditer(text):
            pass
        assert time.process_time() - begun < 0.2, bait


FRAGMENTS = [*BAIT, *"0123456789abxyz+-})][,.%!|&", "\\sqrt{2}", "\\frac{1}{2}", "\\pi", "\\le", "\\pm", "\\cup", "\\infty",
             "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\{", "\\}", "\\\\", "</think>", "\u202e", "\x00", "٣", "≤", "√",
             "π", "⁻¹", "or ", "between ", "\\text{ and }"]  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60) | st.lists(
    st.sampled_from(FRAGMENTS), max_size=25
).map("".join)


@settings(max_examples=150)
@given(ANY_TEXT, ANY_TEXT, st.sampled_from(["{}", "\\boxed{{{}}}", "Answer: {}", "<think>{}</think>\n#### {}"]))
def test_any_text_gets_a_status_and_an_answer_that_a_file_can_hold(
    grader: Grader, gold: str, answer: str, frame: str
) -> None:
    grade, seconds = checked(grader, gold, frame.format(answer, answer))
    assert grade.status != "no_gold" and seconds < LONGEST_S


def children_of(pid: int) -> set[int]:
    """Grading processes whose parent is `pid`."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command, stat = Path(f"/proc/{name}/cmdline").read_bytes(), Path(f"/proc/{name}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid and b"rollout_ray.scoring.sympy_worker" in command:
            found.add(int(name))
    return found


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_in_the_middle(pid: int, idle_cpu: float) -> None:
    await_that(lambda: cpu_seconds(pid) > idle_cpu + 0.05)
    os.kill(pid, signal.SIGKILL)


class Grading(threading.Thread):
    """One comparison in a thread, so that its process can be killed meanwhile; `grade` when it has ended."""

    def __init__(self, grader: Grader, gold: str, text: str) -> None:
        super().__init__()
        self._work, self.grade = (grader, gold, text), Grade("error", "never ended")
        self.start()

    def run(self) -> None:
        grader, gold, text = self._work
        self.grade = grader.grade(gold, text)


SLOW = "\\boxed{\\int \\sqrt{\\tan x} \\ln(\\sin x) dx}"


def test_a_process_killed_in_the_middle_is_replaced_and_asked_again() -> None:
    others = children_of(os.getpid())
    with Grader(timeout_s=60) as grader:
        grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}")
        (pid,) = children_of(os.getpid()) - others
        idle = cpu_seconds(pid)
        grading = Grading(grader, "y/2=\\cos(x)\\sin(x)", "\\boxed{y=\\sin(2x)}")
        kill_in_the_middle(pid, idle)
        grading.join()
        assert grading.grade.status == "correct"


def test_a_comparison_whose_process_is_killed_twice_is_an_error() -> None:
    others = children_of(os.getpid())
    with Grader(timeout_s=60) as grader:
        grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}")
        (first,) = children_of(os.getpid()) - others
        idle = cpu_seconds(first)
        grading = Grading(grader, GOLD, SLOW)
        kill_in_the_middle(first, idle)
        await_that(lambda: children_of(os.getpid()) - others - {first})
        (second,) = children_of(os.getpid()) - others - {first}
        kill_in_the_middle(second, 2 * idle)
        grading.join()
        assert grading.grade.status == "error"
        assert grader.grade("\\sqrt{12}", "\\boxed{2\\sqrt{3}}").status == "correct"


def test_a_process_killed_while_it_starts_is_started_again() -> None:
    others = children_of(os.getpid())
    with Grader() as grader:
        grading = Grading(grader, "\\sqrt{8}", "\\boxed{2\\sqrt{2}}")
        await_that(lambda: children_of(os.getpid()) - others)
        (starting,) = children_of(os.getpid()) - others
        os.kill(starting, signal.SIGKILL)
        grading.join()
        assert grading.grade.status == "correct"


def test_a_process_that_cannot_start_is_a_named_error() -> None:
    with Grader(memory_mib=1) as grader, pytest.raises(GradingError, match="grader_memory_mib"):
        grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}")


@pytest.mark.parametrize("text", ["\\boxed{2\\sqrt{2}}", SLOW], ids=["idle", "computing"])
def test_a_process_dies_with_its_parent(text: str) -> None:
    script = (
        "from rollout_ray.scoring.grader import Grader\ngrader = Grader(timeout_s=60)\n"
        f"grader.grade('x+1', '\\\\boxed{{1+x}}')\nprint('started', flush=True)\ngrader.grade({GOLD!r}, {text!r})\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == b"started\n"
        (child,) = children_of(parent.pid)
        if text == SLOW:
            idle = cpu_seconds(child)
            await_that(lambda: cpu_seconds(child) > idle + 0.3)
        parent.kill()
    try:
        await_that(lambda: not is_alive(child), seconds=5)
    finally:
        if is_alive(child):
            os.kill(child, signal.SIGKILL)


def main() -> None:
    """Prints, for each hostile text, the status and seconds as an answer, behind a marker, and as a gold answer."""
    print("| hostile text | boxed answer to \\sqrt{7} | `Answer:` to 72 | as gold |\n|---|---|---|---|")
    with Grader() as grader:
        grader.grade("\\sqrt{8}", "\\boxed{2\\sqrt{2}}")
        for name, (text, _) in HOSTILE.items():
            pairs = [(GOLD, f"\\boxed{{{text}}}"), ("72", f"Answer: {text}"), (text, f"\\boxed{{{GOLD}}}")]
            cells = [f"{grade.status}, {seconds:.2f} s" for grade, seconds in (checked(grader, *pair) for pair in pairs)]
            print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
