"""Select one question's trajectories for a trainer: preference pairs, best samples, or a group.

All functions are pure and keep the order of the trajectories.
A trajectory with a null reward or a failed generation is never selected.
An incorrect, empty or truncated trajectory is never an example: neither chosen nor best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

Stored = Mapping[str, Any]  # a trajectory with the fields of records.TRAJECTORY
PairType = Literal["correctness", "coherence"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two trajectories of one question. `chosen` is preferred over `rejected`."""

    chosen: Stored
    rejected: Stored
    pair_type: PairType


def preference_pairs(trajectories: Sequence[Stored], margin: float, most: int) -> list[Pair]:
    """Return up to `most` pairs. Each pair has two different texts, and no two pairs have the same texts.

    `correctness` pairs come first: a correct trajectory over an incorrect one. `coherence` pairs
    follow: both correct or both ungraded, with rewards that differ by more than `margin`.
    Each kind uses the trajectories in turn, so a cap keeps many texts and not the best one many times.
    Trajectories with equal rewards keep the order of their arms.
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
    """Return up to `count` trajectories with the highest rewards and different texts.

    They are correct, or ungraded if the question has no gold answer.
    """
    found: dict[str, Stored] = {}
    for trajectory in sorted(filter(_exemplary, group(trajectories)), key=lambda t: -t["reward"]):
        found.setdefault(trajectory["full_text"], trajectory)
    return list(found.values())[:count]


def group(trajectories: Sequence[Stored]) -> list[Stored]:
    """Return the trajectories that have a reward, in their order."""
    return [t for t in trajectories if t["finish_reason"] != "error" and _finite(t["reward"])]


def _finite(reward: float | None) -> bool:
    return reward is not None and math.isfinite(reward)


def _exemplary(trajectory: Stored) -> bool:
    return bool(
        trajectory["correct"] is not False and trajectory["finish_reason"] == "stop" and trajectory["full_text"].strip()
    )


def _crossed(chosen: Sequence[Stored], rejected: Sequence[Stored]) -> Iterator[tuple[Stored, Stored]]:
    """Yield every pair of the two sequences once. Each round uses every entry of the shorter one once."""
    for shift in range(max(len(chosen), len(rejected))):
        for n in range(min(len(chosen), len(rejected))):
            if len(chosen) <= len(rejected):
                yield chosen[n], rejected[(n + shift) % len(rejected)]
            else:
                yield chosen[(n + shift) % len(chosen)], rejected[n]


def _ranked(best_first: Sequence[Stored], margin: float) -> Iterator[tuple[Stored, Stored]]:
    """Yield every pair with rewards more than `margin` apart and an exemplary better one, once.

    Pairs whose ranks sum to n - 1 come first: best with worst, second with second to last.
    The neighbouring sums follow. No round uses a trajectory twice.
    """
    n = len(best_first)
    if not n or not best_first[0]["reward"] - best_first[-1]["reward"] > margin:
        return
    for total in sorted(range(1, 2 * n - 2), key=lambda total: abs(total - (n - 1))):
        for better in range(max(0, total - n + 1), (total + 1) // 2):
            chosen, rejected = best_first[better], best_first[total - better]
            if _exemplary(chosen) and chosen["reward"] - rejected["reward"] > margin:
                yield chosen, rejected
