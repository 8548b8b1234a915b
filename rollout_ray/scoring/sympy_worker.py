"""The process in which answers are compared symbolically (`python -m` this module TIMEOUT_S MEMORY_MIB).

Reads one JSON pair [gold, answer] a line and writes one JSON verdict a line, on its main thread, where math-verify's
alarm works. Its parent (grading.py) kills it where the alarm fails, and where it takes more memory than it may: a
MemoryError raised here would be swallowed inside sympy and end as a wrong 'incorrect'. It ends with its parent, and
what a text makes it try beyond arithmetic (a file, a process, a connection) is refused.
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
    if compare("\\sqrt{8}", "2\\sqrt{2}") != "correct" or compare("x", "y") != "incorrect":
        sys.exit("the symbolic comparison does not work here")
    # A backstop against a growth so fast that the parent does not see it in time.
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 22, memory_mib << 22))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(refuse)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        print(json.dumps(compare(gold, answer)), file=replies, flush=True)


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


def _comparison(timeout_s: int) -> Callable[[str, str], str]:
    """A function of (gold, answer) that gives the verdict. Imports sympy."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    equal_at_points, far_apart = timeout(timeout_s)(_equal_at_points), timeout(timeout_s)(_far_apart)

    def in_time(function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives. An alarm that sympy swallowed has left it half done, which only a yes survives."""
        begun = time.monotonic()
        result = function(*arguments)
        if result is not True and time.monotonic() - begun >= timeout_s:
            raise TimeoutException
        return result

    def parsed(text: str) -> Any:
        return parse(f"\\boxed{{{text}}}", parsing_timeout=timeout_s, raise_on_error=True)

    def verified(gold: list[Any], answer: list[Any]) -> bool:
        try:
            return bool(verify(gold, answer, timeout_seconds=timeout_s, raise_on_error=True))
        except ValueError as error:
            if not str(error).startswith("zip() argument"):
                raise
            return False  # how math-verify meets two relations with different numbers of solutions

    def compare(gold_text: str, answer_text: str) -> str:
        try:
            gold, answer = in_time(parsed, gold_text), in_time(parsed, answer_text)
            if not gold:
                return "bad_gold"
            if answer and in_time(equal_at_points, gold[0], answer[0]):
                return "correct"
            if in_time(verified, gold, answer):
                return "incorrect" if in_time(far_apart, gold[0], answer[0]) else "correct"
        except TimeoutException:
            return "timeout"
        except Exception:  # noqa: BLE001  (sympy raises anything on a hostile text; the verdict says that it failed)
            return "error"
        return "incorrect"

    return compare


def _equal_at_points(gold: Any, answer: Any) -> bool:
    """Whether expressions have the same values, and relations the same but for a factor, at points and with 30 digits.

    It finds at once what math-verify would have to prove by simplifying and solving, and what it cannot prove.
    """
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Relational

    if isinstance(gold, And) and isinstance(answer, And) and len(gold.args) == len(answer.args):
        return all(any(_equal_at_points(ours, theirs) for theirs in answer.args) for ours in gold.args)
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        answer = answer if gold.rel_op == answer.rel_op else answer.reversed
        return gold.rel_op == answer.rel_op and _same_relation(gold, answer)
    if _are_expressions(gold, answer):
        pairs = _values(gold, answer)
        enough = 3 if gold.free_symbols | answer.free_symbols else 1
        return len(pairs) >= enough and all(abs(ours - theirs) <= 1e-20 * abs(ours) for ours, theirs in pairs)
    return False


def _far_apart(gold: Any, answer: Any) -> bool:
    """Whether two constants differ by more than rounding: 2^{-98} and 2^{-99} agree in the places that math-verify sees."""
    from sympy import UnevaluatedExpr

    if not _are_expressions(gold, answer) or any(side.free_symbols or side.has(UnevaluatedExpr) for side in (gold, answer)):
        return False
    for ours, theirs in _values(gold, answer):
        rounding = 1e-5 * max(abs(ours), abs(theirs)) if ours and theirs else 1e-20  # sin(7 pi) is not quite 0
        return bool(abs(ours - theirs) > rounding)
    return False


def _are_expressions(*sides: Any) -> bool:
    """Whether all are scalar expressions, with no matrix in them."""
    from sympy import Expr, preorder_traversal

    return all(isinstance(side, Expr) and not any(part.is_Matrix for part in preorder_traversal(side)) for side in sides)


def _same_relation(gold: Any, answer: Any) -> bool:
    """Whether the differences of the sides are in a constant ratio: positive for inequalities, else not zero."""
    if not _are_expressions(gold.lhs, gold.rhs, answer.lhs, answer.rhs):
        return False
    ratios = [ours / theirs for ours, theirs in _values(gold.lhs - gold.rhs, answer.lhs - answer.rhs) if theirs]
    if len(ratios) < 3 or ratios[0].is_zero or any(abs(ratio - ratios[0]) > 1e-20 * abs(ratios[0]) for ratio in ratios):
        return False
    return gold.rel_op in ("==", "!=") or bool(ratios[0].is_positive)


def _values(*expressions: Any) -> list[tuple[Any, ...]]:
    """Values of expressions of the same unknowns at five points (a constant at one), where they can be evaluated."""
    from sympy import Float, Rational

    exact = [
        expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})
        for expression in expressions
    ]
    unknowns = sorted(set().union(*(expression.free_symbols for expression in exact)), key=str)
    points = []
    for k in range(5 if unknowns else 1):
        at = {x: Rational((-1) ** (i + k) * (7 * k + 5 * i + 3), 2 * k + 3 * i + 5) for i, x in enumerate(unknowns)}
        points.append(tuple(expression.subs(at).evalf(30) for expression in exact))
    return [values for values in points if all(value.is_number and value.is_finite for value in values)]


if __name__ == "__main__":
    main()
