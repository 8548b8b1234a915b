"""Which trajectories of a question a trainer gets: preference pairs, the best few, or the group.

Pure: it picks from one question's trajectories, in their order, and writes nothing (export.py does). A trajectory whose
reward is null or whose generation failed is never picked. An incorrect one, an empty one, or one that was cut off at
max_tokens is never held up as an example: it is neither chosen nor among the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

Stored = Mapping[str, Any]  # a trajectory, by the names of records.TRAJECTORY
PairType = Literal["correctness", "coherence"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two trajectories of one question; `chosen` is the one to prefer."""

    chosen: Stored
    rejected: Stored
    pair_type: PairType


def preference_pairs(trajectories: Sequence[Stored], margin: float, most: int) -> list[Pair]:
    """Up to `most` pairs with two different texts each, no two of them with the same two texts.

    First come `correctness` pairs, a correct trajectory over an incorrect one. Then `coherence` pairs, where both are
    correct, or neither was graded, and the rewards differ by more than `margin`: coherence, length and whatever else the
    reward holds decide. Within a kind the trajectories are used in turn, so that a cap takes many texts rather than the
    best one many times; equal rewards keep the order of the arms.
    """
    usable = group(trajectories)
    exemplary = [t for t in usable if _exemplary(t)]
    best_first = sorted(exemplary, key=lambda t: -t["reward"])
    right = [t for t in best_first if t["correct"]]
    wrong = sorted((t for t in usable if t["correct"] is False), key=lambda t: t["reward"])
    ungraded = sorted((t for t in usable if t["correct"] is None), key=lambda t: -t["reward"])
    all_right = sorted((t for t in usable if t["correct"]), key=lambda t: -t["reward"])
    found: list[Pair] = []
    seen: set[frozenset[str]] = set()
    candidates = chain(
        (Pair(chosen, rejected, "correctness") for chosen, rejected in _crossed(right, wrong)),
        (Pair(*two, "coherence") for same in (all_right, ungraded) for two in _ranked(same, margin)),
    )
    for pair in candidates:
        if len(found) == most:
            break
        texts = frozenset((pair.chosen["full_text"], pair.rejected["full_text"]))
        if len(texts) == 2 and texts not in seen:
            seen.add(texts)
            found.append(pair)
    return found


def best_of(trajectories: Sequence[Stored], count: int) -> list[Stored]:
    """Up to `count` trajectories of the highest rewards, with different texts: correct ones, or ungraded ones where there
    was no gold answer."""
    found: dict[str, Stored] = {}
    for trajectory in sorted(filter(_exemplary, group(trajectories)), key=lambda t: -t["reward"]):
        found.setdefault(trajectory["full_text"], trajectory)
    return list(found.values())[:count]


def group(trajectories: Sequence[Stored]) -> list[Stored]:
    """The trajectories that have a reward, in their order."""
    return [
        t for t in trajectories
        if t["finish_reason"] != "error" and t["reward"] is not None and math.isfinite(t["reward"])
    ]  # fmt: skip


def _exemplary(trajectory: Stored) -> bool:
    return bool(
        trajectory["correct"] is not False and trajectory["finish_reason"] == "stop" and trajectory["full_text"].strip()
    )


def _crossed(chosen: Sequence[Stored], rejected: Sequence[Stored]) -> Iterator[tuple[Stored, Stored]]:
    """Every pair of the two once; each round uses every entry of the shorter one once."""
    for shift in range(max(len(chosen), len(rejected))):
        for n in range(min(len(chosen), len(rejected))):
            if len(chosen) <= len(rejected):
                yield chosen[n], rejected[(n + shift) % len(rejected)]
            else:
                yield chosen[(n + shift) % len(chosen)], rejected[n]


def _ranked(best_first: Sequence[Stored], margin: float) -> Iterator[tuple[Stored, Stored]]:
    """Every pair whose rewards differ by more than `margin` and whose better one may be chosen, once.

    The pairs whose ranks have the sum n - 1 (best with worst, second with last but one) come first, then the sums beside
    it: in each round no trajectory is used twice.
    """
    n = len(best_first)
    if not n or not best_first[0]["reward"] - best_first[-1]["reward"] > margin:
        return
    for total in sorted(range(1, 2 * n - 2), key=lambda total: abs(total - (n - 1))):
        for better in range(max(0, total - n + 1), (total + 1) // 2):
            chosen, rejected = best_first[better], best_first[total - better]
            if _exemplary(chosen) and chosen["reward"] - rejected["reward"] > margin:
                yield chosen, rejected
