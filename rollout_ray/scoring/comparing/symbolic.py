"""Tell with sympy whether expressions, relations and sets are equal, at points and with 30 digits.

It runs in the grading process only (sympy_worker.py), which bounds its time and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def equal_at_points(gold: Any, answer: Any) -> bool:
    """Return whether two sides have the same values at some points, with 30 digits. Relations may differ by a factor.

    This is fast, while math-verify simplifies and solves. It also finds equalities that math-verify cannot prove.
    """
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Relational

    if isinstance(gold, And) and isinstance(answer, And) and len(gold.args) == len(answer.args):
        return all(any(equal_at_points(ours, theirs) for theirs in answer.args) for ours in gold.args)
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        answer = answer if gold.rel_op == answer.rel_op else answer.reversed
        return gold.rel_op == answer.rel_op and _same_relation(gold, answer)
    if _are_expressions(gold, answer):
        pairs = _values(gold, answer)
        enough = 3 if gold.free_symbols | answer.free_symbols else 1
        return len(pairs) >= enough and all(abs(ours - theirs) <= 1e-20 * abs(ours) for ours, theirs in pairs)
    return False


def far_apart(gold: Any, answer: Any) -> bool:
    """Return whether two constants differ by more than rounding. math-verify takes 2^{-98} and 2^{-99} for equal."""
    from sympy import UnevaluatedExpr

    if not _are_expressions(gold, answer) or any(side.free_symbols or side.has(UnevaluatedExpr) for side in (gold, answer)):
        return False
    for ours, theirs in _values(gold, answer):
        rounding = 1e-5 * max(abs(ours), abs(theirs)) if ours and theirs else 1e-20  # sin(7 pi) is not quite 0
        return bool(abs(ours - theirs) > rounding)
    return False


def _are_expressions(*sides: Any) -> bool:
    """Return whether all are scalar expressions, with no matrix in them."""
    from sympy import Expr, preorder_traversal

    return all(isinstance(side, Expr) and not any(part.is_Matrix for part in preorder_traversal(side)) for side in sides)


def _same_relation(gold: Any, answer: Any) -> bool:
    """Return whether the differences of the sides are in a constant ratio: positive for inequalities, else not zero."""
    if not _are_expressions(gold.lhs, gold.rhs, answer.lhs, answer.rhs):
        return False
    ratios = [ours / theirs for ours, theirs in _values(gold.lhs - gold.rhs, answer.lhs - answer.rhs) if theirs]
    if len(ratios) < 3 or ratios[0].is_zero or any(abs(ratio - ratios[0]) > 1e-20 * abs(ratios[0]) for ratio in ratios):
        return False
    return gold.rel_op in ("==", "!=") or bool(ratios[0].is_positive)


def _values(*expressions: Any) -> list[tuple[Any, ...]]:
    """Return the values of expressions at five points, or at one without unknowns. Points without a value are left out."""
    from sympy import Float, Rational

    exact = [
        expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})
        for expression in expressions
    ]
    # One letter may be two symbols, of which one is taken for an integer.
    names = sorted({unknown.name for expression in exact for unknown in expression.free_symbols})
    points = []
    for k in range(5 if names else 1):
        at = {x: Rational((-1) ** (i + k) * (7 * k + 5 * i + 3), 2 * k + 3 * i + 5) for i, x in enumerate(names)}
        points.append(tuple(_at(expression, at).evalf(30) for expression in exact))
    return [values for values in points if all(value.is_number and value.is_finite for value in values)]


def _at(expression: Any, values: dict[str, Any]) -> Any:
    return expression.subs({unknown: values[unknown.name] for unknown in expression.free_symbols})


def build_set(form: list[Any], parsed: Callable[[str], Any]) -> Any:
    """Return the sympy set of a form (sets.py).

    Args:
        form: Kind and parts of the set.
        parsed: Reads the LaTeX of an end.

    Raises:
        ValueError: An end cannot be read.
    """
    from sympy import Complement, FiniteSet, Intersection, Interval, Union, oo

    kind, *parts = form
    if kind == "interval":
        low, high, low_closed, high_closed = parts
        ends = -oo if low is None else _end(low, parsed), oo if high is None else _end(high, parsed)
        return Interval(*ends, not low_closed, not high_closed)
    if kind == "points":
        return FiniteSet(*(_end(part, parsed) for part in parts))
    sets = [build_set(part, parsed) for part in parts]
    return {"union": Union, "intersection": Intersection, "minus": Complement}[kind](*sets)


def _end(latex: str, parsed: Callable[[str], Any]) -> Any:
    """Return an end of an interval as an exact expression with real unknowns."""
    from sympy import Expr, Float, Rational, Symbol

    found = parsed(latex)
    if not found or not isinstance(found[0], Expr):
        raise ValueError(f"{latex} is no number")
    exact = found[0].xreplace({number: Rational(str(number)) for number in found[0].atoms(Float)})
    return exact.xreplace({unknown: Symbol(unknown.name, real=True) for unknown in exact.free_symbols}).doit()


def same_set(gold: Any, answer: Any) -> bool:
    """Return whether two sets of reals are the same."""
    if gold == answer:
        return True
    difference = gold.symmetric_difference(answer)
    return bool(difference.is_empty)
