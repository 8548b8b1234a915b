"""Decides which engine gets which draws next. Pure: no clock, no Ray; the driver and a simulation both drive it.

Invariant: every draw of every question is pending, outstanding at exactly one engine, set aside, or complete.
An engine is kept supplied by credit (2 x its max_num_seqs unfinished) and never holds more than its share, by speed, of
all that is still to be decoded anywhere, nor takes more than that part of what is pending at once; so hand-outs shrink
with the queue, engines end together, and a question with many draws is split rather than left to one. Once nothing is
pending, or as soon as it is known to be slow, an engine beyond its share gives back what it has not begun. Credit and
share count what is still to be decoded, not what is still to be delivered: a question waits for its longest draw, and an
engine that were refilled only then would idle half of its places on long-tailed lengths.
Every call costs a time that depends on the pieces that it moves and not on the number of engines.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from rollout_ray.core.records import ChunkKey, Cut, Question, RolloutRequest

# Unfinished draws an engine may hold, as a multiple of the sequences that it decodes at once. Draws of one length end
# together, within a few steps, and what replaces them takes the driver and the tokenizer a third of a second: with half a
# batch ahead places stood empty meanwhile.
CREDIT = 2
SLOW = 0.75  # of the engines' mean speed; equal ones of a thousand places measure within an eighth of it
MOST_SUSPECTS = 1024  # that an engine gets at once
SMALLEST_SLICE = 8  # draws; a question is split only into pieces at least this large, to keep its shared prefix useful


@dataclass
class _Engine:
    """`draws` counts what it has still to deliver, `unfinished` what it had still to decode at the time `told_at`.
    `decoded` draws took it `seconds` with a full batch; `speed` is their quotient once that says something."""

    max_num_seqs: int
    outstanding: dict[ChunkKey, RolloutRequest] = field(default_factory=dict)
    samples: int = 0
    unfinished: int = 0
    told_at: float = 0.0
    decoded: int = 0
    seconds: float = 0.0
    speed: float | None = None
    asks_soon: bool = False

    def tells(self, unfinished: int, now: float) -> None:
        """Learns the speed. What an engine does with fewer draws than it could decode at once tells nothing."""
        if unfinished >= self.max_num_seqs:
            self.decoded += self.unfinished - unfinished
            self.seconds += now - self.told_at
            if self.decoded >= self.max_num_seqs and self.seconds:
                self.speed = self.decoded / self.seconds
        self.told_at = now


class Scheduler:
    """Hands out the draws of `count` questions, `draws_per_question` each, to engines that come and go.

    `lanes` is the number of scoring actors; all pieces of a question carry the same lane. `expected_engines` counts
    those still starting, so that the first one ready leaves them their share.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        count: int,
        samples_per_question: int,
        *,
        num_scorers: int = 1,
        expected_engines: int = 1,
        most_deaths: int = 3,
    ) -> None:
        self._questions: Iterator[Question] = iter(questions)
        self._samples_per_question, self._num_scorers, self._most_deaths = samples_per_question, num_scorers, most_deaths
        self.expected_engines = expected_engines
        self.pending = count * samples_per_question
        self._queue: deque[RolloutRequest] = deque()
        self._suspects: deque[RolloutRequest] = deque()
        self._suspects_at_once = 1
        self._next_ordinal = 0
        self._engines: dict[str, _Engine] = {}
        self._deaths: Counter[int] = Counter()
        self.outstanding = 0  # draws that engines hold
        self._unfinished = 0  # of these, still to be decoded
        self._known, self._known_speed = 0, 0.0  # engines whose speed is known, and its sum in draws/s

    @property
    def finished(self) -> bool:
        return self.pending == 0 and self.outstanding == 0

    def add_engine(self, name: str, max_num_seqs: int) -> None:
        self._engines[name] = _Engine(max_num_seqs)

    def assign(self, name: str, unfinished: int, now: float) -> list[RolloutRequest]:
        """What engine `name`, with `unfinished` draws still to decode at `now` (s, any origin), shall take on; empty
        where it holds enough or nothing is pending."""
        engine = self._engines[name]
        self._count_speed(engine, -1)
        engine.tells(unfinished, now)
        self._count_speed(engine, 1)
        self._decodes(engine, unfinished)
        credit = CREDIT * engine.max_num_seqs - unfinished
        share = self._share(engine) if unfinished else max(self._share(engine), SMALLEST_SLICE)
        wanted = min(credit, share - unfinished)
        left = min(wanted, self._part(engine)) if unfinished else wanted
        engine.asks_soon = left < wanted and unfinished + left < engine.max_num_seqs
        handed: list[RolloutRequest] = []
        free = self._suspects_at_once
        if self._suspects:
            free -= sum(map(self._is_suspect, engine.outstanding.values()))
        while left > 0 and self._suspects and free > 0:
            handed.append(self._suspects.popleft())
            free -= 1
            left -= len(handed[-1])
        while left > 0 and (chunk := self._take(left)):
            left -= len(chunk)
            handed.append(chunk)
        for chunk in handed:
            engine.outstanding[chunk.ordinal, chunk.first] = chunk
        samples = sum(map(len, handed))
        engine.samples += samples
        self.outstanding += samples
        self.pending -= samples
        self._decodes(engine, unfinished + samples)
        return handed

    def asks_soon(self, name: str) -> bool:
        """Whether engine `name` has room for more and was given its part of it only: the others may have ended as many
        draws meanwhile, and it shall ask again once they have told."""
        return self._engines[name].asks_soon

    def to_reclaim(self, name: str) -> int:
        """Draws that engine `name` shall give back, of those that it has not begun: what it holds beyond its share, once
        nothing is pending or where it is slow."""
        engine = self._engines[name]
        excess = engine.unfinished - self._share(engine)
        due = not self.pending or self._relative_speed(engine) < SLOW
        return excess if due and excess >= SMALLEST_SLICE else 0

    def return_samples(self, name: str, cuts: Iterable[Cut]) -> int:
        """Engine `name` has given back, unbegun, the draws of these pieces from the given one on; returns how many.
        Raises KeyError for a piece that it does not hold."""
        engine = self._engines[name]
        before = engine.samples
        for (ordinal, first), cut in cuts:
            chunk = engine.outstanding.pop((ordinal, first))
            if cut > first:
                engine.outstanding[ordinal, first] = replace(chunk, stop=cut)
            engine.samples -= chunk.stop - cut
            self.put_back([replace(chunk, first=cut)])
        self.outstanding -= before - engine.samples
        self._decodes(engine, engine.unfinished - (before - engine.samples))
        return before - engine.samples

    def _decodes(self, engine: _Engine, unfinished: int) -> None:
        self._unfinished += unfinished - engine.unfinished
        engine.unfinished = unfinished

    def _count_speed(self, engine: _Engine, sign: int) -> None:
        if engine.speed is not None:
            self._known += sign
            self._known_speed += sign * engine.speed

    def _share(self, engine: _Engine) -> int:
        """Draws of all that is still to be decoded that the engine can do while the others do theirs."""
        return math.ceil((self.pending + self._unfinished) * self._fraction(engine))

    def _part(self, engine: _Engine) -> int:
        """Draws of what is pending that the engine may take at once, of which the others leave as much to it: guided
        self-scheduling (Polychronopoulos and Kuck 1987). Draws of one length end together, and the first engine to say
        so would else take what the others are about to ask for."""
        return max(SMALLEST_SLICE, math.ceil(self.pending * self._fraction(engine)))

    def _fraction(self, engine: _Engine) -> float:
        """The engine's part of all engines' speed, those that are not there yet among them."""
        return self._relative_speed(engine) / max(1, self.expected_engines, len(self._engines))

    def _relative_speed(self, engine: _Engine) -> float:
        """The engine's speed by the mean of those that are known. One whose speed is not known counts as an average one."""
        return 1.0 if engine.speed is None else engine.speed / (self._known_speed / self._known)

    def complete(self, name: str, chunks: Iterable[ChunkKey]) -> list[RolloutRequest]:
        """Engine `name` has delivered these pieces; returns what they were. Raises KeyError for one it does not hold."""
        engine = self._engines[name]
        delivered = [engine.outstanding.pop(key) for key in chunks]
        samples = sum(map(len, delivered))
        engine.samples -= samples
        self.outstanding -= samples
        if any(map(self._is_suspect, delivered)):
            self._suspects_at_once = min(2 * self._suspects_at_once, MOST_SUSPECTS)
        return delivered

    def put_back(self, requests: Iterable[RolloutRequest]) -> None:
        """Delivered pieces that were lost on their way to a scoring actor are drawn again, before all others."""
        for request in requests:
            (self._suspects if self._is_suspect(request) else self._queue).appendleft(request)
            self.pending += len(request)

    def remove_engine(self, name: str) -> list[RolloutRequest]:
        """Engine `name` died: what it held returns to the front of the queue.

        Returns the pieces that are set aside instead: one that was in flight at `most_deaths` deaths, the last time as
        the only suspect (a piece one death short of it). A kill storm makes suspects of whole batches, and most of them
        are innocent: an engine gets one suspect at a time, twice as many with each that completes, one again after a
        death. So one death sets one question aside at most, and innocents are acquitted in a few rounds.
        """
        engine = self._engines.pop(name)
        self.outstanding -= engine.samples
        self._unfinished -= engine.unfinished
        self._count_speed(engine, -1)
        held = list(engine.outstanding.values())
        # By question, not by piece: several pieces of one question on this engine saw one death, not several.
        suspects = {request.ordinal for request in held if self._is_suspect(request)}
        self._deaths.update({request.ordinal for request in held} - suspects)
        self._suspects_at_once = 1
        quarantined = [r for r in held if r.ordinal in suspects] if len(suspects) == 1 else []
        self.put_back(r for r in reversed(held) if r not in quarantined)
        return quarantined

    def _is_suspect(self, request: RolloutRequest) -> bool:
        return self._deaths[request.ordinal] >= self._most_deaths - 1

    def _take(self, wanted: int) -> RolloutRequest | None:
        """The next piece: a whole question, or `wanted` draws of it where it is large enough to be split; None where
        none is left but suspects."""
        request = self._queue.popleft() if self._queue else self._pull()
        if request is None:
            return None
        size = max(wanted, SMALLEST_SLICE)
        if len(request) < size + SMALLEST_SLICE:
            return request
        cut = request.first + size
        self._queue.appendleft(replace(request, first=cut))
        return replace(request, stop=cut)

    def _pull(self) -> RolloutRequest | None:
        question = next(self._questions, None)
        if question is None:
            return None
        ordinal = self._next_ordinal
        self._next_ordinal += 1
        return RolloutRequest(ordinal, ordinal % self._num_scorers, question, 0, self._samples_per_question)
