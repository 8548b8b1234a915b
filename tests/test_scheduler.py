"""The scheduler under random engines, and simulated at scale."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray.records import Question, RolloutRequest
from rollout_ray.scheduler import CREDIT, SMALLEST_SLICE, PieceKey, Scheduler


def make(count: int, draws: int, **options: int) -> Scheduler:
    return Scheduler((Question(str(i), "x", None) for i in range(count)), count, draws, **options)


def covered(pieces: list[RolloutRequest]) -> Counter[tuple[str, int]]:
    """How often each draw of each question stands in `pieces`."""
    return Counter((p.question.question_id, draw) for p in pieces for draw in range(p.first, p.stop))


def everything(count: int, draws: int) -> Counter[tuple[str, int]]:
    return Counter((str(q), d) for q in range(count) for d in range(draws))


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 4), st.integers(1, 64), st.integers(1, 3), st.randoms())
def test_every_draw_is_delivered_once_whatever_dies(
    count: int, draws: int, engines: int, max_num_seqs: int, lanes: int, random: random.Random
) -> None:
    scheduler = make(count, draws, lanes=lanes, expected_engines=engines, most_deaths=3)
    held: dict[str, list[RolloutRequest]] = {}
    delivered: list[RolloutRequest] = []
    set_aside: list[RolloutRequest] = []
    deaths = 0
    while not scheduler.finished:
        for name in [f"e{i}" for i in range(engines) if f"e{i}" not in held]:
            scheduler.add_engine(name, max_num_seqs)
            held[name] = []
        name = random.choice(sorted(held))
        held[name] += scheduler.assign(name, sum(map(len, held[name])))
        if deaths < 8 and random.random() < 0.1:
            deaths += 1
            set_aside += scheduler.remove_engine(name)
            del held[name]
        elif held[name]:
            piece = held[name].pop(random.randrange(len(held[name])))
            delivered += scheduler.complete(name, [(piece.ordinal, piece.first)])
            if random.random() < 0.05:
                scheduler.put_back([delivered.pop()])
    assert covered(delivered + set_aside) == everything(count, draws)
    assert all(len({p.lane for p in delivered if p.ordinal == o}) <= 1 for o in range(count))


def test_an_engine_holds_no_more_than_its_credit_and_one_question() -> None:
    scheduler = make(1000, 8)
    scheduler.add_engine("e", 64)
    assert 64 * CREDIT <= sum(map(len, scheduler.assign("e", 0))) < 64 * CREDIT + 8
    assert scheduler.assign("e", 80) == []


def test_an_engine_is_resupplied_as_it_finishes_draws_though_no_piece_is_complete() -> None:
    scheduler = make(1000, 8)
    scheduler.add_engine("e", 64)
    scheduler.assign("e", 0)
    assert [len(p) for p in scheduler.assign("e", 80 - 9)] == [8, 8]


def test_the_first_engine_ready_leaves_the_others_their_share() -> None:
    scheduler = make(40, 8, expected_engines=4)
    scheduler.add_engine("e", 1024)
    assert sum(map(len, scheduler.assign("e", 0))) == 80


def test_few_questions_with_many_samples_are_split_over_the_engines() -> None:
    scheduler = make(3, 64, expected_engines=8)
    for i in range(8):
        scheduler.add_engine(f"e{i}", 256)
    first_round = [sum(map(len, scheduler.assign(f"e{i}", 0))) for i in range(8)]
    assert min(first_round) >= SMALLEST_SLICE and max(first_round) <= 24


def test_an_ordinary_question_stays_whole() -> None:
    scheduler = make(5, 8, expected_engines=8)
    scheduler.add_engine("e", 256)
    assert [len(p) for p in scheduler.assign("e", 0)] == [8]


def test_what_a_dead_engine_held_goes_out_next_and_in_order() -> None:
    scheduler = make(100, 8)
    scheduler.add_engine("a", 16)
    held = scheduler.assign("a", 0)
    assert scheduler.remove_engine("a") == []
    scheduler.add_engine("b", 16)
    assert scheduler.assign("b", 0) == held


def test_a_question_in_flight_at_three_deaths_is_set_aside() -> None:
    scheduler = make(1, 8, most_deaths=3)
    for number in (1, 2, 3):
        scheduler.add_engine("e", 16)
        (piece,) = scheduler.assign("e", 0)
        assert scheduler.remove_engine("e") == ([piece] if number == 3 else [])
    assert scheduler.finished


def test_one_death_sets_no_more_than_one_question_aside() -> None:
    scheduler = make(10, 8, most_deaths=3)
    for _ in range(2):
        scheduler.add_engine("e", 256)
        assert len(scheduler.assign("e", 0)) == 10
        assert scheduler.remove_engine("e") == []
    set_aside = []
    for _ in range(10):
        scheduler.add_engine("e", 256)
        assert len(scheduler.assign("e", 0)) == 1
        assert scheduler.assign("e", 8) == []
        set_aside += scheduler.remove_engine("e")
    assert len({p.ordinal for p in set_aside}) == 10 and scheduler.finished


def test_a_suspect_goes_out_beside_fresh_questions_and_may_be_acquitted() -> None:
    scheduler = make(100, 8, most_deaths=2)
    scheduler.add_engine("e", 16)
    first = [p.ordinal for p in scheduler.assign("e", 0)]
    scheduler.remove_engine("e")
    scheduler.add_engine("e", 16)
    handed = scheduler.assign("e", 0)
    assert [p.ordinal in first for p in handed] == [True, False, False]
    scheduler.complete("e", [(handed[0].ordinal, 0)])
    assert [p.ordinal in first for p in scheduler.assign("e", 16)] == [True]


def test_pieces_of_one_question_on_one_engine_see_one_death() -> None:
    scheduler = make(1, 64, most_deaths=3)
    for number in (1, 2, 3):
        scheduler.add_engine("e", 16)
        pieces = scheduler.assign("e", 0) + scheduler.assign("e", 0)
        assert len(pieces) > 1 or number == 3  # the last time as a suspect, a piece at a time
        set_aside = scheduler.remove_engine("e")
        assert {p.ordinal for p in set_aside} == ({0} if number == 3 else set())


def rounds_to_the_end(scheduler: Scheduler, deadly: frozenset[int]) -> tuple[int, set[int]]:
    """Rounds that one engine needs, when a round delivers all or, with a deadly question in it, ends in a death; and the
    questions set aside."""
    rounds, set_aside = 0, set()
    while not scheduler.finished:
        rounds += 1
        scheduler.add_engine("e", 256)
        held = scheduler.assign("e", 0)
        if deadly & {piece.ordinal for piece in held}:
            set_aside |= {piece.ordinal for piece in scheduler.remove_engine("e")}
        else:
            scheduler.complete("e", [(piece.ordinal, piece.first) for piece in held])
    return rounds, set_aside


def test_after_a_kill_storm_the_innocent_are_acquitted_in_a_few_rounds() -> None:
    scheduler = make(40, 8, most_deaths=3)
    for _ in range(2):
        scheduler.add_engine("e", 256)
        assert len(scheduler.assign("e", 0)) == 40
        scheduler.remove_engine("e")
    assert rounds_to_the_end(scheduler, frozenset()) == (6, set())  # 1 + 2 + 4 + 8 + 16 + 9


@given(st.integers(0, 39), st.integers(0, 39))
def test_only_the_deadly_questions_are_set_aside(one: int, other: int) -> None:
    rounds, set_aside = rounds_to_the_end(make(40, 8, most_deaths=3), frozenset((one, other)))
    assert set_aside == {one, other} and rounds < 40


def test_delivering_what_was_not_given_is_an_error() -> None:
    scheduler = make(1, 8)
    scheduler.add_engine("e", 16)
    with pytest.raises(KeyError):
        scheduler.complete("e", [(0, 0)])


def simulate(count: int, draws: int, engines: int, max_num_seqs: int) -> tuple[float, float]:
    """Idle share of the engines' places while work is pending, and the seconds from then to the end.

    Lengths are exponential with mean 1 s. An engine decodes the oldest `max_num_seqs` of its draws, hands a piece over
    when it is complete, and asks for more then and whenever an eighth of its places is to be refilled.
    """
    rng = random.Random(0)
    scheduler = make(count, draws, expected_engines=engines)
    waiting: dict[str, deque[PieceKey]] = {f"e{i}": deque() for i in range(engines)}
    running = dict.fromkeys(waiting, 0)
    finished_since = dict.fromkeys(waiting, 0)
    left: Counter[PieceKey] = Counter()
    events: list[tuple[float, int, str, PieceKey]] = []
    busy = dry = now = 0.0
    delivered = 0

    def supply(name: str) -> None:
        nonlocal busy
        finished_since[name] = 0
        for piece in scheduler.assign(name, running[name] + len(waiting[name])):
            key = (piece.ordinal, piece.first)
            left[key] = len(piece)
            waiting[name].extend([key] * len(piece))
        while waiting[name] and running[name] < max_num_seqs:
            length = rng.expovariate(1.0)
            busy += length
            running[name] += 1
            heapq.heappush(events, (now + length, len(events), name, waiting[name].popleft()))

    for name in waiting:
        scheduler.add_engine(name, max_num_seqs)
        supply(name)
    while events:
        if scheduler.pending:
            dry = now
        now, _, name, key = heapq.heappop(events)
        running[name] -= 1
        left[key] -= 1
        finished_since[name] += 1
        if left[key] == 0:
            delivered += len(scheduler.complete(name, [key])[0])
        if left[key] == 0 or finished_since[name] >= max_num_seqs // 8:
            supply(name)
        elif waiting[name]:
            busy += (length := rng.expovariate(1.0))
            running[name] += 1
            heapq.heappush(events, (now + length, len(events), name, waiting[name].popleft()))
    assert delivered == count * draws and scheduler.finished
    in_tail = engines * max_num_seqs  # draws that were running when the queue ran dry, with 1 s each to go
    return 1 - (busy - in_tail) / (dry * engines * max_num_seqs), now - dry


@pytest.mark.parametrize(
    ("count", "draws", "engines", "seqs"), [(20_000, 8, 8, 64), (600, 64, 8, 64), (25_000, 8, 100, 16)]
)
def test_engines_are_kept_busy_while_work_is_pending_and_end_together(
    count: int, draws: int, engines: int, seqs: int
) -> None:
    idle, tail = simulate(count, draws, engines, seqs)
    assert idle < 0.02
    assert tail < 20  # the longest of some thousand exponential lengths is about 10
