"""Compare lists of values: in order, by labels, or in any order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rollout_ray.scoring.comparing.latex import to_latex
from rollout_ray.scoring.comparing.matching import matched
from rollout_ray.scoring.comparing.verdict import Decision, settled
from rollout_ray.scoring.reading.answer import Answer

Decide = Callable[[Answer, Answer], Decision]


def compare_entries(gold: Answer, answer: Answer, decide: Decide) -> Decision:
    """Decide on two lists of one length: at once if rules settle all entries, else by a task."""
    theirs = _arranged(gold, answer)
    in_order = gold.ordered or answer.ordered or bool(gold.labels) or _told_by_nouns(gold, answer)
    known: list[list[bool | None]] = []
    for row, ours in enumerate(gold.values):
        decisions = [
            decide(ours, entry) if not in_order or row == column else settled(False, "")
            for column, entry in enumerate(theirs)
        ]
        known.append([None if d.tasks else d.status == "correct" for d in decisions])
        if any(d.status == "error" for d in decisions):
            return Decision("refused: too costly to evaluate", "error")
    rule = "values in order" if in_order else "values in any order"
    possible = matched([[entry is not False for entry in line] for line in known])
    if not possible or not any(None in line for line in known):
        return settled(possible, rule)
    texts = [[to_latex(value.text) for value in values] for values in (gold.values, theirs)]
    return Decision(rule, tasks=(json.dumps(["values", *texts, known]),))


def _arranged(gold: Answer, answer: Answer) -> Sequence[Answer]:
    """Return the answer's values in the order of the gold's labels, and of the alphabet against a tuple."""
    if not answer.labels:
        return answer.values
    names = dict(zip(map(str.casefold, answer.labels), answer.values, strict=True))
    wanted = [label.casefold() for label in gold.labels]
    if gold.labels and set(wanted) == set(names):
        return [names[label] for label in wanted]
    if gold.ordered and all(len(label) == 1 for label in answer.labels):
        return [names[label] for label in sorted(names)]
    return answer.values


def _told_by_nouns(gold: Answer, answer: Answer) -> bool:
    """Return whether the gold's values differ by their nouns and the answer's have none: then their order counts."""
    nouns = {value.unit for value in gold.values}
    return len(nouns) == len(gold.values) and "" not in nouns and not all(value.unit for value in answer.values)
