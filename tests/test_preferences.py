"""Test which trajectories a trainer gets, for arbitrary trajectories."""

from __future__ import annotations

import itertools
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.export.selection import best_of, group, preference_pairs


def trajectory(text: str, reward: float | None, correct: bool | None, reason: str = "stop") -> dict[str, Any]:
    return {"full_text": text, "reward": reward, "correct": correct, "finish_reason": reason, "arm": "a"}


REWARDS = st.one_of(st.none(), st.sampled_from([0.0, 0.005, 0.01, 0.5, 1.0, 1.5, math.nan, math.inf]), st.floats(-2, 2))
TRAJECTORIES = st.lists(
    st.builds(
        trajectory,
        st.sampled_from(["", " ", *"abcdef"]),
        REWARDS,
        st.sampled_from([True, False, None]),
        st.sampled_from(["stop", "stop", "stop", "length", "error"]),
    ),
    max_size=14,
)


@given(TRAJECTORIES, st.floats(0, 1), st.integers(1, 9))
def test_no_pair_breaks_a_promise(trajectories: list[dict[str, Any]], margin: float, most: int) -> None:
    pairs = preference_pairs(trajectories, margin, most)
    assert len(pairs) <= most
    texts = [frozenset((p.chosen["full_text"], p.rejected["full_text"])) for p in pairs]
    assert all(len(two) == 2 for two in texts) and len(set(texts)) == len(texts)
    for pair in pairs:
        assert pair.chosen in trajectories and pair.rejected in trajectories
        for one in (pair.chosen, pair.rejected):
            assert one["finish_reason"] != "error" and one["reward"] is not None and math.isfinite(one["reward"])
        assert pair.chosen["finish_reason"] == "stop" and pair.chosen["full_text"].strip()
        if pair.pair_type == "correctness":
            assert (pair.chosen["correct"], pair.rejected["correct"]) == (True, False)
        else:
            assert pair.chosen["correct"] is pair.rejected["correct"] is not False
            assert pair.chosen["reward"] - pair.rejected["reward"] > margin
    kinds = [p.pair_type for p in pairs]
    assert kinds == sorted(kinds, key=["correctness", "coherence"].index)
    assert pairs == preference_pairs(trajectories, margin, most)
    assert pairs == preference_pairs(trajectories, margin, most + 3)[:most]


@given(TRAJECTORIES, st.floats(0, 1))
def test_without_a_cap_every_pair_is_found(trajectories: list[dict[str, Any]], margin: float) -> None:
    """Compare with all ordered pairs, filtered by the definition. Texts differ, so rewards are unambiguous."""
    for number, one in enumerate(trajectories):
        one["full_text"] = one["full_text"].strip() and f"{one['full_text']}{number}"
    wanted = set()
    for chosen, rejected in itertools.permutations(trajectories, 2):
        alive = [t["finish_reason"] != "error" and math.isfinite(t["reward"] or 0) for t in (chosen, rejected)]
        rewarded = chosen["reward"] is not None and rejected["reward"] is not None and all(alive)
        if not rewarded or chosen["finish_reason"] != "stop" or not chosen["full_text"]:
            continue
        beats = chosen["correct"] is True and rejected["correct"] is False
        same = chosen["correct"] is rejected["correct"] and chosen["correct"] is not False
        if beats or (same and chosen["reward"] - rejected["reward"] > margin):
            wanted.add((chosen["full_text"], rejected["full_text"]))
    found = [(p.chosen["full_text"], p.rejected["full_text"]) for p in preference_pairs(trajectories, margin, 10_000)]
    assert set(found) == wanted
    assert len(found) == len(wanted)


@given(TRAJECTORIES, st.integers(1, 9))
def test_the_best_are_the_best(trajectories: list[dict[str, Any]], count: int) -> None:
    best = best_of(trajectories, count)
    able = [
        t
        for t in group(trajectories)
        if t["correct"] is not False and t["finish_reason"] == "stop" and t["full_text"].strip()
    ]
    assert [t in able for t in best] == [True] * len(best)
    assert len(best) == min(count, len({t["full_text"] for t in able}))
    assert len({t["full_text"] for t in best}) == len(best)
    left = [t["reward"] for t in able if t["full_text"] not in {b["full_text"] for b in best}]
    assert not best or not left or min(t["reward"] for t in best) >= max(left)


@given(TRAJECTORIES)
def test_a_group_has_all_rewards_and_nothing_else(trajectories: list[dict[str, Any]]) -> None:
    kept = group(trajectories)
    assert all(math.isfinite(t["reward"]) and t["finish_reason"] != "error" for t in kept)
    dropped = [t for t in trajectories if t not in kept]
    assert all(t["finish_reason"] == "error" or t["reward"] is None or not math.isfinite(t["reward"]) for t in dropped)


def test_a_cap_takes_many_texts() -> None:
    right = [trajectory(f"right {n}", 2.0 - n / 10, True) for n in range(3)]
    wrong = [trajectory(f"wrong {n}", 0.5, False) for n in range(5)]
    pairs = preference_pairs([*wrong, *right], 0.01, 3)
    assert [(p.chosen["full_text"], p.rejected["full_text"]) for p in pairs] == [
        ("right 0", "wrong 0"),
        ("right 1", "wrong 1"),
        ("right 2", "wrong 2"),
    ]


def test_coherence_pairs_come_after_and_need_the_margin() -> None:
    near = [trajectory("a", 1.5, True), trajectory("b", 1.495, True), trajectory("c", 1.4, True)]
    pairs = preference_pairs([*near, trajectory("d", 0.5, False)], 0.01, 99)
    assert [p.pair_type for p in pairs] == ["correctness"] * 3 + ["coherence"] * 2
    assert {(p.chosen["full_text"], p.rejected["full_text"]) for p in pairs[3:]} == {("a", "c"), ("b", "c")}
