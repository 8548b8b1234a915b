"""The bookkeeping of an engine's pieces: what is given back, and what is done late."""

from __future__ import annotations

from rollout_ray.actors.backend import Finished
from rollout_ray.actors.engine.exchange import by_arm
from rollout_ray.actors.engine.work_units import ChunkTable
from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.loading import load_config
from rollout_ray.core.records import Question, RolloutRequest, sample_specs
from rollout_ray.telemetry.engine_stats import ArmCount


def test_a_draw_that_is_done_while_an_earlier_one_is_given_back_is_passed_over() -> None:
    """Its text was still being read: the piece ends before it by then, and another engine draws it again."""
    chunks = ChunkTable()
    chunks.openings = ("", "", "")
    chunks.add(RolloutRequest(7, 0, Question("q", "p", None), 0, 3), {n: [1, 2] for n in range(3)}, {})
    first, second, third = (waiting.key for waiting in chunks.take(3))
    assert chunks.cut([second]) == (((7, 0), 1),)
    chunks.finish(Finished(third, "late", 4, "stop"), "engine-0", 0)
    assert (chunks.unfinished, chunks.complete) == (1, 0)
    chunks.finish(Finished(first, "text", 4, "stop"), "engine-0", 0)
    (done,) = chunks.hand_over()
    assert [c.full_text for c in done.completions] == ["text"] and chunks.unfinished == 0


def test_a_draw_that_is_done_when_its_piece_is_gone_is_passed_over() -> None:
    chunks = ChunkTable()
    chunks.openings = ("", "")
    chunks.add(RolloutRequest(7, 0, Question("q", "p", None), 0, 2), {n: [1, 2] for n in range(2)}, {})
    first, second = (waiting.key for waiting in chunks.take(2))
    assert chunks.cut([first]) == (((7, 0), 0),)
    chunks.finish(Finished(second, "late", 4, "stop"), "engine-0", 0)
    assert (chunks.unfinished, chunks.complete) == (0, 0)


def test_what_ended_counts_before_its_piece_is_complete() -> None:
    """A question of many samples would else stand at zero until its longest sample ends."""
    samples = sample_specs(resolve_arms(load_config(["--arm_set", "samples", "--n_samples", "3"])))
    chunks = ChunkTable()
    chunks.openings = ("", "", "")
    chunks.add(RolloutRequest(7, 0, Question("q", "p", None), 0, 3), {n: [1, 2] for n in range(3)}, {})
    first, second, third = (waiting.key for waiting in chunks.take(3))
    assert by_arm(chunks.partial(), samples) == {}
    chunks.finish(Finished(third, "text", 4, "stop"), "engine-0", 0)
    chunks.finish(Finished(first, "text", 9, "length"), "engine-0", 0)
    assert by_arm(chunks.partial(), samples) == {"samples": ArmCount(2, 13, 1)}
    chunks.finish(Finished(second, "text", 4, "stop"), "engine-0", 0)
    assert chunks.partial() == [] and by_arm(chunks.hand_over(), samples) == {"samples": ArmCount(3, 17, 1)}


def test_a_run_that_is_dropped_returns_what_finished_of_it() -> None:
    chunks = ChunkTable()
    chunks.openings = ("", "")
    for ordinal in (7, 8, 9):
        chunks.add(RolloutRequest(ordinal, 0, Question("q", "p", None), 0, 2), {n: [1, 2] for n in range(2)}, {})
    keys = [waiting.key for waiting in chunks.take(6)]
    for key in (keys[0], keys[1], keys[3]):
        chunks.finish(Finished(key, "text", 4, "stop"), "engine-0", 0)
    numbers = {one.request.ordinal: [c.sample_index for c in one.completions] for one in chunks.drop()}
    assert numbers == {7: [0, 1], 8: [1]} and chunks.drop() == []
