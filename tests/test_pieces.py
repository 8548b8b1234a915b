"""The bookkeeping of an engine's pieces: what is given back, and what is done late."""

from __future__ import annotations

from rollout_ray.actors.backend import Finished
from rollout_ray.actors.engine.work_units import Pieces
from rollout_ray.core.records import Question, RolloutRequest


def test_a_draw_that_is_done_while_an_earlier_one_is_given_back_is_passed_over() -> None:
    """Its text was still being read: the piece ends before it by then, and another engine draws it again."""
    pieces = Pieces()
    pieces.openings = ("", "", "")
    pieces.add(RolloutRequest(7, 0, Question("q", "p", None), 0, 3), {n: [1, 2] for n in range(3)}, {})
    first, second, third = (waiting.key for waiting in pieces.take(3))
    assert pieces.cut([second]) == (((7, 0), 1),)
    pieces.finish(Finished(third, "late", 4, "stop"), "engine-0", 0)
    assert (pieces.unfinished, pieces.complete) == (1, 0)
    pieces.finish(Finished(first, "text", 4, "stop"), "engine-0", 0)
    (done,) = pieces.hand_over()
    assert [c.full_text for c in done.completions] == ["text"] and pieces.unfinished == 0


def test_a_draw_that_is_done_when_its_piece_is_gone_is_passed_over() -> None:
    pieces = Pieces()
    pieces.openings = ("", "")
    pieces.add(RolloutRequest(7, 0, Question("q", "p", None), 0, 2), {n: [1, 2] for n in range(2)}, {})
    first, second = (waiting.key for waiting in pieces.take(2))
    assert pieces.cut([first]) == (((7, 0), 0),)
    pieces.finish(Finished(second, "late", 4, "stop"), "engine-0", 0)
    assert (pieces.unfinished, pieces.complete) == (0, 0)
