"""Compare plain quantities: numbers, percentages, units of one dimension, counted nouns."""

from __future__ import annotations

from fractions import Fraction

from rollout_ray.scoring.comparing.verdict import Decision, settled
from rollout_ray.scoring.reading.answer import Answer, comparable
from rollout_ray.scoring.reading.units import read_unit


def bare_letter_against_none(gold: Answer, answer: Answer) -> bool:
    return (gold.weak and not answer.unit) or (answer.weak and not gold.unit)


def compare_quantities(gold: Answer, answer: Answer) -> Decision:
    ours, theirs = gold.number, answer.number
    assert ours is not None and theirs is not None
    if gold.unit and answer.unit and comparable(gold.unit) != comparable(answer.unit):
        return _with_units(gold, answer, ours, theirs)
    if (gold.percent and answer.unit) or (answer.percent and gold.unit):
        return settled(False, "a percentage is no quantity with a unit")
    if ours == theirs:
        return settled(True, "equal numbers")
    as_share = gold.percent != answer.percent and ours * (1 if gold.percent else 100) == theirs * (
        1 if answer.percent else 100
    )
    return settled(as_share, "a percentage and its share" if as_share else "different numbers")


def _with_units(gold: Answer, answer: Answer, ours: Fraction, theirs: Fraction) -> Decision:
    """Decide on two numbers with units that are spelled differently: by value in one dimension, else by their nouns."""
    left, right = read_unit(gold.unit), read_unit(answer.unit)
    if left is None or right is None:
        same = _head(gold.unit) == _head(answer.unit) or "" in (left and left.dimension, right and right.dimension)
        return settled(same and ours == theirs, "counted nouns")
    if "" in (left.dimension, right.dimension) or _degrees(left.dimension, right.dimension):
        return settled(ours == theirs, "equal numbers")
    if left.dimension != right.dimension:
        return settled(False, "units of different dimensions")
    difference = abs(ours * left.scale - theirs * right.scale)
    return settled(difference <= Fraction(1, 10**15) * abs(ours * left.scale), "units of one dimension, by value")


def _degrees(*dimensions: str) -> bool:
    return "angle" in dimensions and any(dimension.startswith("temperature") for dimension in dimensions)


def _head(noun: str) -> str:
    words = noun.casefold().split()
    head = words[words.index("of") - 1] if "of" in words[1:] else words[-1]
    return head.removesuffix("es") if head.endswith(("shes", "ches", "xes", "sses")) else head.rstrip("s")


def units_differ(gold: Answer, answer: Answer) -> bool:
    """Return whether two formulas have units that are not the same."""
    if not gold.unit or not answer.unit or comparable(gold.unit) == comparable(answer.unit):
        return False
    return read_unit(gold.unit) != read_unit(answer.unit)
