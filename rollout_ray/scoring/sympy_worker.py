"""Compare answers symbolically in a process of its own (`python -m` this module TIMEOUT_S MEMORY_MIB).

It reads one JSON task a line and writes one JSON verdict a line, on the main thread, as the CPU limit needs it.
The parent (grader_process.py) kills it if it exceeds its memory: sympy would swallow a MemoryError, and the answer would
be incorrect. A text that makes it open a file, a process or a connection is refused.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import stat
import sys
from typing import Any

from rollout_ray.scoring.comparing.matching import matched
from rollout_ray.scoring.comparing.symbolic import build_set, equal_at_points, far_apart, same_set
from rollout_ray.scoring.cpu_limit import CpuLimit, OutOfTimeError

PR_SET_PDEATHSIG = 1
SELF_CHECK_SECONDS = 60  # the parent waits no longer for a start; the limit of a grade is too short for the imports
_REFUSED = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "signal.pthread_kill")
_HARMLESS = frozenset(("os.listdir", "os.scandir"))  # what importing a module does


def main() -> None:
    """Answer the tasks on stdin until it ends. The first line on stdout is "ready"."""
    parent = os.getppid()
    timeout_s, memory_mib = int(sys.argv[1]), int(sys.argv[2])
    _end_with(parent)
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no reply
    # A number too long to print would raise inside sympy, be swallowed there and end as a wrong 'incorrect'.
    sys.set_int_max_str_digits(0)
    _check_comparison()
    comparison = Comparison(CpuLimit(timeout_s))
    # A backstop against a growth so fast that the parent does not see it in time.
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 22, memory_mib << 22))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not stat.S_ISREG(os.fstat(replies.fileno()).st_mode):  # a user who tries this command may send its output to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(refuse)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(comparison.verdict(json.loads(line))), file=replies, flush=True)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies. Without Linux it ends at the end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent is gone")


def _check_comparison() -> None:
    """Exit with a message unless a right and a wrong answer get their verdicts. It imports what later tasks need."""
    comparison = Comparison(CpuLimit(SELF_CHECK_SECONDS))
    tasks = [["values", ["\\sqrt{8}"], [answer], [[None]]] for answer in ("2\\sqrt{2}", "y")]
    if (verdicts := [comparison.verdict(task) for task in tasks]) != ["correct", "incorrect"]:
        sys.exit(f"the symbolic comparison does not work here: the self-check gives {verdicts}")


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise PermissionError at an audit event by which a text could reach outside this process."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(_REFUSED) and event not in _HARMLESS):
        raise PermissionError(f"{event} is refused in the grading process")


class Comparison:
    """Compare the two sides of a task with sympy and math-verify, within a CPU limit."""

    def __init__(self, limit: CpuLimit) -> None:
        from latex2sympy2_extended.math_normalization import NormalizationConfig
        from math_verify import LatexExtractionConfig

        self._limit = limit
        # Units are parted from numbers before (quantity.py): a letter m here is an unknown.
        spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
        self._reading = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=spelling)]

    def verdict(self, task: list[Any]) -> str:
        """Return the verdict on a task: ["set", gold, answer] or ["values", golds, answers, entries known before]."""
        kind, gold, answer, *rest = task
        try:
            with self._limit.task():
                if kind == "set":
                    sets = [self._limit.call(build_set, form, self._parsed) for form in (gold, answer)]
                    return "correct" if self._limit.call(same_set, *sets) else "incorrect"
                return self._same_values(gold, answer, rest[0])
        except OutOfTimeError:
            return "timeout"
        except Exception:  # noqa: BLE001  (sympy raises anything on a hostile text; the verdict says that it failed)
            return "error"

    def _same_values(self, golds: list[str], answers: list[str], known: list[list[bool | None]]) -> str:
        for row, line in enumerate(known):
            for column, entry in enumerate(line):
                if entry is None:
                    found = self._equal(golds[row], answers[column])
                    if found is None:
                        return "bad_gold"
                    line[column] = found
        return "correct" if matched(known) else "incorrect"  # type: ignore[arg-type]

    def _equal(self, gold_text: str, answer_text: str) -> bool | None:
        """Return whether two expressions are equal. Return None where the gold cannot be read."""
        call = self._limit.call
        gold, answer = call(self._parsed, gold_text), call(self._parsed, answer_text)
        if not gold:
            return None
        if answer and call(equal_at_points, gold[0], answer[0]):
            return True
        return call(self._verified, gold, answer) and not call(far_apart, gold[0], answer[0])

    # math-verify's own alarms count wall-clock time, so they are off in both calls (0 seconds).
    def _parsed(self, text: str) -> Any:
        from math_verify import parse

        return parse(f"\\boxed{{{text}}}", extraction_config=self._reading, parsing_timeout=0, raise_on_error=True)

    def _verified(self, gold: list[Any], answer: list[Any]) -> bool:
        from math_verify import verify

        try:
            return bool(verify(gold, answer, timeout_seconds=0, raise_on_error=True))
        except ValueError as error:
            if not str(error).startswith("zip() argument"):
                raise
            return False  # math-verify raises this for relations with different numbers of solutions


if __name__ == "__main__":
    main()
