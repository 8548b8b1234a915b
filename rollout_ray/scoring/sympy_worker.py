"""Compare answers symbolically in a process of its own (`python -m` this module TIMEOUT_S MEMORY_MIB).

It reads one JSON task a line and writes one JSON verdict a line, on its main thread, where math-verify's alarm works. The
parent (grader_process.py) kills it where the alarm fails or memory runs out: sympy would swallow a MemoryError and call
the answer incorrect. A text that makes it open a file, a process or a connection is refused.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from rollout_ray.scoring.comparing.matching import matched
from rollout_ray.scoring.comparing.symbolic import build_set, equal_at_points, far_apart, same_set

PR_SET_PDEATHSIG = 1
_REFUSED = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "signal.pthread_kill")
_HARMLESS = frozenset(("os.listdir", "os.scandir"))  # what importing a module does


def main() -> None:
    timeout_s, memory_mib, parent = int(sys.argv[1]), int(sys.argv[2]), os.getppid()
    _end_with(parent)
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no reply
    # A number too long to print would raise inside sympy, be swallowed there and end as a wrong 'incorrect'.
    sys.set_int_max_str_digits(0)
    compare = _comparison(timeout_s)
    tasks = [["values", ["\\sqrt{8}"], [answer], [[None]]] for answer in ("2\\sqrt{2}", "y")]
    if [compare(task) for task in tasks] != ["correct", "incorrect"]:
        sys.exit("the symbolic comparison does not work here")
    # A backstop against a growth so fast that the parent does not see it in time.
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 22, memory_mib << 22))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(refuse)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(compare(json.loads(line))), file=replies, flush=True)


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies; without Linux it ends at the end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent is gone")


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(_REFUSED) and event not in _HARMLESS):
        raise PermissionError(f"{event} is refused in the grading process")


def _comparison(timeout_s: int) -> Callable[[list[Any]], str]:
    """Return a function from a task to its verdict. Imports sympy."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    # Units are parted from numbers before (quantity.py): a letter m here is an unknown.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    reading = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=spelling)]
    begun = 0.0

    def in_time(function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function gives. An alarm that sympy swallowed has left it half done, which only a yes survives."""
        started = time.monotonic()
        if started - begun >= 4 * timeout_s:
            raise TimeoutException
        result = function(*arguments)
        if result is not True and time.monotonic() - started >= timeout_s:
            raise TimeoutException
        return result

    def bounded(function: Callable[..., Any], *arguments: Any) -> Any:
        return in_time(timeout(timeout_s)(function), *arguments)

    def parsed(text: str) -> Any:
        return parse(f"\\boxed{{{text}}}", extraction_config=reading, parsing_timeout=timeout_s, raise_on_error=True)

    def verified(gold: list[Any], answer: list[Any]) -> bool:
        try:
            return bool(verify(gold, answer, timeout_seconds=timeout_s, raise_on_error=True))
        except ValueError as error:
            if not str(error).startswith("zip() argument"):
                raise
            return False  # how math-verify meets two relations with different numbers of solutions

    def equal(gold_text: str, answer_text: str) -> bool | None:
        """Return whether two expressions are equal; None where the gold cannot be read."""
        gold, answer = in_time(parsed, gold_text), in_time(parsed, answer_text)
        if not gold:
            return None
        if answer and bounded(equal_at_points, gold[0], answer[0]):
            return True
        return in_time(verified, gold, answer) and not bounded(far_apart, gold[0], answer[0])

    def same_values(golds: list[str], answers: list[str], known: list[list[bool | None]]) -> str:
        for row, line in enumerate(known):
            for column, entry in enumerate(line):
                if entry is None:
                    found = equal(golds[row], answers[column])
                    if found is None:
                        return "bad_gold"
                    line[column] = found
        return "correct" if matched(known) else "incorrect"  # type: ignore[arg-type]

    def compare(task: list[Any]) -> str:
        nonlocal begun
        begun = time.monotonic()
        kind, gold, answer, *rest = task
        try:
            if kind == "set":
                sets = [bounded(build_set, form, parsed) for form in (gold, answer)]
                return "correct" if bounded(same_set, *sets) else "incorrect"
            return same_values(gold, answer, rest[0])
        except TimeoutException:
            return "timeout"
        except Exception:  # noqa: BLE001  (sympy raises anything on a hostile text; the verdict says that it failed)
            return "error"

    return compare


if __name__ == "__main__":
    main()
