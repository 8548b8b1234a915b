"""Decide whether an answer is the gold one: at once where both are plain, else by tasks for the grading process.

It decides by rules, names the rule, and evaluates nothing symbolic (sympy_worker.py). Every regular expression is linear.
"""

from __future__ import annotations

import json
import re

from rollout_ray.scoring.comparing.choices import compare_choices
from rollout_ray.scoring.comparing.forms import RATIO, based, ratio, worth_parsing
from rollout_ray.scoring.comparing.latex import to_latex, too_costly
from rollout_ray.scoring.comparing.parameters import renamed
from rollout_ray.scoring.comparing.quantities import bare_letter_against_none, compare_quantities, units_differ
from rollout_ray.scoring.comparing.values import compare_entries
from rollout_ray.scoring.comparing.verdict import Decision, settled
from rollout_ray.scoring.reading.answer import Answer, comparable
from rollout_ray.scoring.reading.sets import RealSet, read_set
from rollout_ray.scoring.reading.units import date


def decide(gold: Answer, answer: Answer | None) -> Decision:
    """Return the decision on an answer. The answer None gives no_answer."""
    if answer is None:
        return Decision("the text gives no answer", "no_answer")
    if (found := _plain(gold, answer)) or (found := compare_choices(gold, answer, decide)):
        return found
    if (found := _as_sets(gold, answer)) or (found := _as_values(gold, answer)):
        return found
    return _equations(gold, answer) or _texts(gold, answer)


def _plain(gold: Answer, answer: Answer) -> Decision | None:
    """Decide on two quantities, on equal texts, and on ratios, numerals with a base and dates."""
    if gold.equation and answer.equation and not _same_name(gold, answer):
        return None
    if gold.number is not None and answer.number is not None:
        if bare_letter_against_none(gold, answer):
            return settled(False, "a letter glued to the number is a unit only where the other side has one")
        return compare_quantities(gold, answer)
    same_text = comparable(gold.text) == comparable(answer.text) and not units_differ(gold, answer) and not gold.labels
    if same_text and (None in (gold.equation, answer.equation) or bool(gold.name) == bool(answer.name)):
        return settled(True, "same text")
    for read in (ratio, based):
        if (left := read(gold.text)) and (right := read(answer.text)):
            return settled(left == right, "ratio or numeral")
    if any(RATIO.match(one.text) and other.number is not None for one, other in ((gold, answer), (answer, gold))):
        return settled(False, "a ratio is no number")
    if date(gold.text) or date(answer.text):
        return settled(False, "a date is only the same date")
    return None


def _same_name(gold: Answer, answer: Answer) -> bool:
    """Return whether two equations name the same: `x = 5` and `x = 6` do, `x = 5` and `y = 5` do not."""
    ours, theirs = gold.name, answer.name
    return bool(ours and theirs) and (ours == theirs or any(len(name) > 2 for name in (ours, theirs)))


def _as_sets(gold: Answer, answer: Answer) -> Decision | None:
    """Decide on two sets of reals, if one side can be nothing else."""
    if gold.number is not None or answer.number is not None:
        return None
    ours, theirs = read_set(gold.equation or gold.text), read_set(answer.equation or answer.text)
    if ours is None or theirs is None or not (ours.clear or theirs.clear):
        return None
    if ours.unknown and theirs.unknown and ours.unknown != theirs.unknown:
        if ours.has_letters or theirs.has_letters:
            return None  # x > y and y < x
        return settled(False, "sets of different unknowns")
    if too_costly(gold.text) or too_costly(answer.text):
        return Decision("refused: too costly to evaluate", "error")
    return Decision("sets of reals", tasks=(json.dumps(["set", _latex_form(ours), _latex_form(theirs)]),))


def _latex_form(real_set: RealSet) -> list[object]:
    def written(form: list[object]) -> list[object]:
        return [
            form[0],
            *(written(x) if isinstance(x, list) else to_latex(x) if isinstance(x, str) else x for x in form[1:]),
        ]

    return written(real_set.form)


def _as_values(gold: Answer, answer: Answer) -> Decision | None:
    """Decide on a side with several values: entry by entry against several, a hedge against one."""
    if not gold.several and not answer.several:
        return None
    if not gold.several:
        if gold.number is not None or answer.values:
            return Decision("several values where the gold has one", "no_answer")
        return None
    if not answer.several:
        members = {(value.text, value.number) for value in gold.values}
        if gold.by_or and (answer.text, answer.number) in members:
            return Decision("the gold joins values by `or`, and the answer is one of them", "bad_gold")
        return settled(False, "one value where the gold has several") if gold.values else None
    if not gold.values or not answer.values:
        return settled(False, "several values that cannot be told apart")
    if len(gold.values) != len(answer.values):
        return settled(False, "a different number of values")
    return compare_entries(gold, renamed(gold, answer) or answer, decide)


def _equations(gold: Answer, answer: Answer) -> Decision | None:
    """Decide on equations: against another equation, or against a value."""
    for one, other in ((gold, answer), (answer, gold)):
        if one.equation and one.equation == one.text and not other.equation:
            return settled(False, "an equation against a value")
    if not (gold.equation and answer.equation):
        return None
    if _same_name(gold, answer):
        return None
    values_too = bool(gold.name and answer.name) and gold.number is None
    pairs = [(gold.equation, answer.equation), *([(gold.text, answer.text)] if values_too else [])]
    return _symbolic(pairs, "equations", gold, answer)


def _texts(gold: Answer, answer: Answer) -> Decision:
    if not (worth_parsing(gold.text) and worth_parsing(answer.text)):
        return settled(False, "texts that differ and are no mathematics")
    if units_differ(gold, answer):
        return settled(False, "formulas with different units")
    pairs = [(_written(gold), _written(answer))]
    if again := renamed(gold, answer):
        pairs.append((gold.text, again.text))
    return _symbolic(pairs, "symbolic comparison", gold, answer)


def _written(side: Answer) -> str:
    """Return the text of a side for the symbolic comparison. An angle in degrees keeps its sign."""
    return f"{side.text}°" if side.number is not None and side.unit in ("°", "degree", "degrees") else side.text


_CONSTANT = re.compile(r"\+\s?([A-Za-z])$")


def _symbolic(pairs: list[tuple[str, str]], rule: str, gold: Answer, answer: Answer) -> Decision:
    if any(too_costly(text) for pair in pairs for text in pair):
        return Decision("refused: too costly to evaluate", "error")
    tasks = []
    for left, right in pairs:
        ours, theirs = _CONSTANT.search(left), _CONSTANT.search(right)
        if ours and theirs and ours.group(1) in "CcKk" and theirs.group(1) in "CcKk":
            left, right = left[: ours.start()] + "+C", right[: theirs.start()] + "+C"
        tasks.append(json.dumps(["values", [to_latex(left)], [to_latex(right)], [[None]]]))
    return Decision(rule, tasks=tuple(tasks))
