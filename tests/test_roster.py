"""Test the id sketch: a few kB that name the ids that a file lacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.results.id_sketch import CELLS, WIDTH, IdSketch

IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda text: len(text.encode()) <= WIDTH
)


@given(st.sets(IDS, min_size=1, max_size=200), st.data())
def test_one_missing_or_foreign_id_is_named_whatever_the_order(ids: set[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(ids)))
    foreign = data.draw(IDS.filter(lambda i: i not in ids))
    whole = IdSketch.from_text(IdSketch.of(sorted(ids)).to_text())
    less = whole.compare(IdSketch.of(sorted(ids - {gone}, reverse=True)))
    assert (less.missing, less.extra, less.unnamed) == ((gone,), (), 0)
    more = whole.compare(IdSketch.of([*ids, foreign]))
    assert (more.missing, more.extra, more.unnamed) == ((), (foreign,), 0)


@given(st.sets(IDS, max_size=300), st.sets(IDS, max_size=300))
def test_what_it_names_is_true_and_what_it_cannot_name_is_counted(expected: set[str], found: set[str]) -> None:
    difference = IdSketch.of(expected).compare(IdSketch.of(found))
    assert set(difference.missing) <= expected - found and set(difference.extra) <= found - expected
    everything = set(difference.missing) | set(difference.extra) == expected ^ found
    assert (difference.unnamed == 0) == everything


def test_an_id_too_long_to_be_held_is_noticed() -> None:
    difference = IdSketch.of(["x" * (WIDTH + 1), "y"]).compare(IdSketch.of(["y"]))
    assert (difference.missing, difference.unnamed) == ((), 1)


def test_a_line_that_is_no_roster_is_refused() -> None:
    assert len(IdSketch().to_text()) < 12_000
    with pytest.raises(ValueError, match=f"1 cells where {CELLS} are needed"):
        IdSketch.from_text("1:2")
