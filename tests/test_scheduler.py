"""The scheduler under random engines, and simulated at scale."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.core.records import Cut, Question, RolloutRequest
from rollout_ray.driver.scheduler import CREDIT, SMALLEST_SLICE, Scheduler
from rollout_ray.jobs.benchmark.simulated_engine import Workload
from rollout_ray.jobs.benchmark.simulation import Outcome, simulate
from rollout_ray.jobs.benchmark.tail import SCENARIOS, mean


def make(count: int, samples: int, **options: int) -> Scheduler:
    return Scheduler((Question(str(i), "x", None) for i in range(count)), count, samples, **options)


def covered(chunks: list[RolloutRequest]) -> Counter[tuple[str, int]]:
    """How often each draw of each question stands in `pieces`."""
    return Counter((p.question.question_id, draw) for p in chunks for draw in range(p.first, p.stop))


def everything(count: int, samples: int) -> Counter[tuple[str, int]]:
    return Counter((str(q), d) for q in range(count) for d in range(samples))


@pytest.mark.usefixtures("long_computation")
@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 4), st.integers(1, 64), st.integers(1, 3), st.randoms())
def test_every_draw_is_delivered_once_whatever_dies(
    count: int, samples: int, engines: int, max_num_seqs: int, num_scorers: int, random: random.Random
) -> None:
    scheduler = make(count, samples, num_scorers=num_scorers, expected_engines=engines, most_deaths=3)
    held: dict[str, list[RolloutRequest]] = {}
    delivered: list[RolloutRequest] = []
    quarantined: list[RolloutRequest] = []
    deaths = 0
    now = 0.0
    while not scheduler.finished:
        for name in [f"e{i}" for i in range(engines) if f"e{i}" not in held]:
            scheduler.add_engine(name, max_num_seqs)
            held[name] = []
        name = random.choice(sorted(held))
        now += random.random()
        cuts = returned_samples(held[name], random) if random.random() < 0.3 else []
        scheduler.return_samples(name, cuts)
        unfinished = sum(map(len, held[name]))
        held[name] += scheduler.assign(name, unfinished, now)
        assert 0 <= scheduler.to_reclaim(name) <= sum(map(len, held[name]))
        assert scheduler.outstanding == sum(len(chunk) for chunks in held.values() for chunk in chunks)
        if deaths < 8 and random.random() < 0.1:
            deaths += 1
            quarantined += scheduler.remove_engine(name)
            del held[name]
        elif held[name]:
            chunk = held[name].pop(random.randrange(len(held[name])))
            delivered += scheduler.complete(name, [(chunk.ordinal, chunk.first)])
            if random.random() < 0.05:
                scheduler.put_back([delivered.pop()])
    assert covered(delivered + quarantined) == everything(count, samples)
    assert all(len({p.scorer_index for p in delivered if p.ordinal == o}) <= 1 for o in range(count))


@given(st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 11), max_size=11)), st.integers(1, 64))
def test_only_what_is_not_kept_is_handed_out(kept: dict[int, set[int]], max_num_seqs: int) -> None:
    scheduler = make(6, 12)
    scheduler.leave_out({str(question): numbers for question, numbers in kept.items()})
    scheduler.add_engine("e", max_num_seqs)
    delivered: list[RolloutRequest] = []
    while not scheduler.finished:
        handed = scheduler.assign("e", 0, 0.0)
        assert scheduler.held("e") == handed
        delivered += scheduler.complete("e", [(chunk.ordinal, chunk.first) for chunk in handed])
    saved = Counter((str(question), number) for question, numbers in kept.items() for number in numbers)
    assert covered(delivered) + saved == everything(6, 12)


def returned_samples(held: list[RolloutRequest], random: random.Random) -> list[Cut]:
    """Cuts the ends off some pieces, or all of them, as an engine does that gives back what it has not begun."""
    cuts: list[Cut] = []
    for chunk in random.sample(held, min(len(held), 2)):
        cut = random.randrange(chunk.first, chunk.stop)
        cuts.append(((chunk.ordinal, chunk.first), cut))
        held.remove(chunk)
        if cut > chunk.first:
            held.append(replace(chunk, stop=cut))
    return cuts


def test_an_engine_holds_no_more_than_its_credit_and_one_question() -> None:
    scheduler = make(1000, 8)
    scheduler.add_engine("e", 64)
    assert 64 * CREDIT <= sum(map(len, scheduler.assign("e", 0, 0.0))) < 64 * CREDIT + 8
    assert scheduler.assign("e", 64 * CREDIT, 0.0) == []


def test_an_engine_is_resupplied_as_it_finishes_draws_though_no_piece_is_complete() -> None:
    scheduler = make(1000, 8)
    scheduler.add_engine("e", 64)
    scheduler.assign("e", 0, 0.0)
    assert [len(p) for p in scheduler.assign("e", 64 * CREDIT - 9, 0.0)] == [8, 8]


def test_the_first_engine_ready_leaves_the_others_their_share() -> None:
    scheduler = make(40, 8, expected_engines=4)
    scheduler.add_engine("e", 1024)
    assert sum(map(len, scheduler.assign("e", 0, 0.0))) == 80


def test_few_questions_with_many_samples_are_split_over_the_engines() -> None:
    scheduler = make(3, 64, expected_engines=8)
    for i in range(8):
        scheduler.add_engine(f"e{i}", 256)
    first_round = [sum(map(len, scheduler.assign(f"e{i}", 0, 0.0))) for i in range(8)]
    assert min(first_round) >= SMALLEST_SLICE and max(first_round) <= 24


def test_an_ordinary_question_stays_whole() -> None:
    scheduler = make(5, 8, expected_engines=8)
    scheduler.add_engine("e", 256)
    assert [len(p) for p in scheduler.assign("e", 0, 0.0)] == [8]


def test_what_a_dead_engine_held_goes_out_next_and_in_order() -> None:
    scheduler = make(100, 8)
    scheduler.add_engine("a", 16)
    held = scheduler.assign("a", 0, 0.0)
    assert scheduler.remove_engine("a") == []
    scheduler.add_engine("b", 16)
    assert scheduler.assign("b", 0, 0.0) == held


def test_a_question_in_flight_at_three_deaths_is_set_aside() -> None:
    scheduler = make(1, 8, most_deaths=3)
    for number in (1, 2, 3):
        scheduler.add_engine("e", 16)
        (chunk,) = scheduler.assign("e", 0, 0.0)
        assert scheduler.remove_engine("e") == ([chunk] if number == 3 else [])
    assert scheduler.finished


def test_one_death_sets_no_more_than_one_question_aside() -> None:
    scheduler = make(10, 8, most_deaths=3)
    for _ in range(2):
        scheduler.add_engine("e", 256)
        assert len(scheduler.assign("e", 0, 0.0)) == 10
        assert scheduler.remove_engine("e") == []
    quarantined = []
    for _ in range(10):
        scheduler.add_engine("e", 256)
        assert len(scheduler.assign("e", 0, 0.0)) == 1
        assert scheduler.assign("e", 8, 0.0) == []
        quarantined += scheduler.remove_engine("e")
    assert len({p.ordinal for p in quarantined}) == 10 and scheduler.finished


def test_a_suspect_goes_out_beside_fresh_questions_and_may_be_acquitted() -> None:
    scheduler = make(100, 8, most_deaths=2)
    scheduler.add_engine("e", 16)
    first = [p.ordinal for p in scheduler.assign("e", 0, 0.0)]
    scheduler.remove_engine("e")
    scheduler.add_engine("e", 16)
    handed = scheduler.assign("e", 0, 0.0)
    assert [p.ordinal in first for p in handed] == [True, False, False, False]
    scheduler.complete("e", [(handed[0].ordinal, 0)])
    assert [p.ordinal in first for p in scheduler.assign("e", 16, 0.0)] == [True, True]


def test_pieces_of_one_question_on_one_engine_see_one_death() -> None:
    scheduler = make(1, 64, most_deaths=3)
    for number in (1, 2, 3):
        scheduler.add_engine("e", 16)
        chunks = scheduler.assign("e", 0, 0.0) + scheduler.assign("e", 0, 0.0)
        assert len(chunks) > 1 or number == 3  # the last time as a suspect, a piece at a time
        quarantined = scheduler.remove_engine("e")
        assert {p.ordinal for p in quarantined} == ({0} if number == 3 else set())


def rounds_to_the_end(scheduler: Scheduler, deadly: frozenset[int]) -> tuple[int, set[int]]:
    """Rounds that one engine needs, when a round delivers all or, with a deadly question in it, ends in a death; and the
    questions set aside."""
    rounds, quarantined = 0, set()
    while not scheduler.finished:
        rounds += 1
        scheduler.add_engine("e", 256)
        held = scheduler.assign("e", 0, 0.0)
        if deadly & {chunk.ordinal for chunk in held}:
            quarantined |= {chunk.ordinal for chunk in scheduler.remove_engine("e")}
        else:
            scheduler.complete("e", [(chunk.ordinal, chunk.first) for chunk in held])
    return rounds, quarantined


def test_after_a_kill_storm_the_innocent_are_acquitted_in_a_few_rounds() -> None:
    scheduler = make(40, 8, most_deaths=3)
    for _ in range(2):
        scheduler.add_engine("e", 256)
        assert len(scheduler.assign("e", 0, 0.0)) == 40
        scheduler.remove_engine("e")
    assert rounds_to_the_end(scheduler, frozenset()) == (6, set())  # 1 + 2 + 4 + 8 + 16 + 9


@given(st.integers(0, 39), st.integers(0, 39))
def test_only_the_deadly_questions_are_set_aside(one: int, other: int) -> None:
    rounds, quarantined = rounds_to_the_end(make(40, 8, most_deaths=3), frozenset((one, other)))
    assert quarantined == {one, other} and rounds < 40


def test_delivering_what_was_not_given_is_an_error() -> None:
    scheduler = make(1, 8)
    scheduler.add_engine("e", 16)
    with pytest.raises(KeyError):
        scheduler.complete("e", [(0, 0)])


def test_engines_that_can_hold_everything_get_equal_shares_at_once() -> None:
    scheduler = make(500, 8, expected_engines=8)
    for i in range(8):
        scheduler.add_engine(f"e{i}", 1024)
    shares = [sum(map(len, scheduler.assign(f"e{i}", 0, 0.0))) for i in range(8)]
    assert scheduler.pending == 0 and min(shares) > 460 and max(shares) <= 504


def test_an_engine_that_others_have_overtaken_gives_back_what_it_holds_beyond_its_share() -> None:
    scheduler = make(40, 8, expected_engines=2)
    for name in ("fast", "slow"):
        scheduler.add_engine(name, 64)
        scheduler.assign(name, 0, 0.0)
    while scheduler.pending:
        scheduler.assign("fast", 40, 1.0)
    scheduler.assign("fast", 128, 1.0)
    assert scheduler.to_reclaim("slow") == 0  # it holds 128, and the two of them 256
    scheduler.assign("fast", 0, 2.0)
    assert scheduler.to_reclaim("slow") == 64


def test_what_is_given_back_goes_to_another_engine_and_the_rest_is_delivered_under_its_own_key() -> None:
    scheduler = make(1, 16)
    scheduler.add_engine("a", 16)
    (chunk,) = scheduler.assign("a", 0, 0.0)
    assert scheduler.return_samples("a", [((0, 0), 6)]) == 10
    scheduler.add_engine("b", 16)
    (rest,) = scheduler.assign("b", 0, 0.0)
    assert (rest.first, rest.stop) == (6, 16)
    assert scheduler.complete("a", [(0, 0)]) == [replace(chunk, stop=6)]
    assert scheduler.complete("b", [(0, 6)]) == [rest] and scheduler.finished


def test_a_slow_engine_stops_getting_more_before_the_others_do() -> None:
    scheduler = make(1000, 8, expected_engines=2)
    for name in ("slow", "fast"):
        scheduler.add_engine(name, 64)
        scheduler.assign(name, 0, 0.0)
    slow_last = fast_last = 0.0
    for second in range(1, 1000):
        slow_last = second if scheduler.assign("slow", 72, second) else slow_last
        for tenth in range(5):
            fast_last = second if scheduler.assign("fast", 72, second + tenth / 5) else fast_last
    assert scheduler.pending == 0 and slow_last < fast_last


def test_what_a_slow_engine_has_not_begun_goes_to_the_others_while_there_is_more() -> None:
    scheduler = make(125, 8, expected_engines=2)
    held = dict.fromkeys(("slow", "fast"), 0)
    for name in held:
        scheduler.add_engine(name, 64)
        held[name] = sum(map(len, scheduler.assign(name, 0, 0.0)))
    assert held == {"slow": 128, "fast": 128}
    reclaim = Counter[str]()
    for second in range(1, 20):
        for name, ended in (("slow", 8), ("fast", 64)):
            held[name] -= ended
            held[name] += sum(map(len, scheduler.assign(name, held[name], second)))
            reclaim[name] += scheduler.to_reclaim(name)
        if reclaim.total():
            break
    assert scheduler.pending and reclaim["slow"] and not reclaim["fast"]


def test_the_first_engine_to_end_a_batch_leaves_the_others_their_part_of_the_rest() -> None:
    """The other's draws have ended as well by then; it has only not said so yet."""
    scheduler = make(600, 8, expected_engines=2)
    held = dict.fromkeys(("first", "second"), 0)

    def ask(name: str) -> int:
        got = sum(map(len, scheduler.assign(name, held[name], 9.0)))
        held[name] += got
        return got

    for name in held:
        scheduler.add_engine(name, 1024)
        assert ask(name) == 2048 and not scheduler.asks_soon(name)
    held = dict.fromkeys(held, 512)  # both have ended what they decoded
    assert ask("first") == (4800 - 2 * 2048) / 2
    assert scheduler.asks_soon("first")
    while scheduler.pending:
        assert ask("second") + ask("first")
    assert held == {"first": 864, "second": 864}
    assert not any(map(scheduler.asks_soon, held))


@pytest.mark.parametrize("scenario", ["one length: 500 x 8 on 2", "one length: 1,500 x 8"])
def test_engines_whose_draws_end_together_get_equal_parts(scenario: str) -> None:
    outcome = mean_of(scenario)
    assert outcome.seconds < 1.08 * outcome.bound  # one engine of all takes a third batch else: 1.16 and 1.55
    assert outcome.idle < 0.03


def mean_of(scenario: str, seeds: int = 3) -> Outcome:
    return mean([simulate(SCENARIOS[scenario], seed=seed) for seed in range(seeds)])


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize(
    ("work", "most"),
    [
        (Workload(5_000, 8, places=64), 0.01),
        (Workload(300, 64, places=64), 0.01),
        (Workload(6_000, 8, engines=100, places=16), 0.015),
    ],
    ids=["5000x8 on 8", "300x64 on 8", "6000x8 on 100"],
)
def test_no_place_is_free_while_work_is_pending(work: Workload, most: float) -> None:
    assert mean([simulate(work, seed=seed) for seed in range(3)]).unused < most


@pytest.mark.parametrize("scenario", ["500 x 8", "30 x 64"])
def test_what_fits_into_the_engines_is_begun_at_once_and_evenly(scenario: str) -> None:
    outcome = mean_of(scenario)
    assert outcome.begun < 0.1  # a share of what is pending alone would take three seconds to hand out
    assert outcome.seconds < 1.5 * outcome.bound


@pytest.mark.usefixtures("long_computation")
def test_a_slow_engine_does_not_hold_the_others_up_for_long() -> None:
    assert mean_of("long tail, one at half speed", seeds=8).idle < 0.21  # with equal shares 0.24


def test_what_a_slow_engine_has_not_begun_is_done_by_the_others() -> None:
    outcome = mean_of("long tail, KV for 128, one at quarter")
    assert outcome.returned_samples > 500
    assert outcome.idle < 0.45 and outcome.unused < 0.12  # with all given to the backend 0.56 and 0.5


def test_an_engine_that_comes_late_finds_work_while_there_is_some() -> None:
    work = Workload(4_000, 8, places=256, starts=(10.0,))
    late, punctual = simulate(work), simulate(replace(work, starts=()))
    assert late.seconds < punctual.seconds + 10.0 / 8 + 3.0
