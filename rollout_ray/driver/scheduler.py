"""Decide which engine gets which samples next. Pure: no clock, no Ray; the driver and a simulation both drive it.

Invariant: every sample of every question is pending, outstanding at exactly one engine, quarantined, or complete.
A call takes a time that depends on the chunks that it moves, not on the number of engines. `Scheduler` has the policy.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rollout_ray.core.records import ChunkKey, Cut, Question, RolloutRequest

# Unfinished samples an engine may hold, as a multiple of the sequences that it decodes at once. Samples of one length end
# within a few steps of each other. The driver and the tokenizer take a third of a second to replace them. With half a
# batch ahead, places stood empty meanwhile.
CREDIT = 2
SLOW = 0.75  # of the engines' mean speed; equal engines of a thousand places measure within an eighth of it
MOST_SUSPECTS = 1024  # that an engine gets at once
SMALLEST_SLICE = 8  # samples; a question is split into chunks at least this large: its prefix is computed for each


@dataclass
class _Engine:
    """One engine.

    Attributes:
        samples: Samples that it has still to deliver.
        unfinished: Samples that it had still to decode at the time `told_at` (s).
        decoded: Samples that it decoded in `seconds` with a full batch.
        speed: `decoded` / `seconds`, once enough is known.
    """

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
        """Learn the speed. An engine with fewer samples than it could decode at once tells nothing about it."""
        if unfinished >= self.max_num_seqs:
            self.decoded += self.unfinished - unfinished
            self.seconds += now - self.told_at
            if self.decoded >= self.max_num_seqs and self.seconds:
                self.speed = self.decoded / self.seconds
        self.told_at = now


class Scheduler:
    """Hands out the samples of questions to engines that come and go.

    - Credit: an engine holds at most CREDIT x its max_num_seqs unfinished samples.
    - Share: it never holds more than its share, by speed, of all that is still to be decoded anywhere. It takes at most
      that part of what is pending at once. So hand-outs shrink with the queue, engines end together, and a question with
      many samples is split.
    - Return: an engine beyond its share returns what it has not begun. That applies once nothing is pending, and to slow
      engines before.

    Credit and share count samples that are still to be decoded, not those still to be delivered. A question waits for its
    longest sample. An engine that is refilled only then leaves half of its places idle on long-tailed lengths.
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
        """Take on `count` questions.

        Args:
            questions: The questions, in the order in which they are handed out.
            count: How many questions there are.
            samples_per_question: Samples of each question, over all arms.
            num_scorers: Scorers; all chunks of a question go to one of them.
            expected_engines: Engines, those that still start among them: the first one ready leaves them their share.
            most_deaths: Engine deaths that a question is in flight at before it is quarantined.
        """
        self._questions: Iterator[Question] = iter(questions)
        self._samples_per_question = samples_per_question
        self._num_scorers = num_scorers
        self._most_deaths = most_deaths
        self.expected_engines = expected_engines
        self.pending = count * samples_per_question
        self._kept: Mapping[str, Set[int]] = {}
        self._queue: deque[RolloutRequest] = deque()
        self._suspects: deque[RolloutRequest] = deque()
        self._suspects_at_once = 1
        self._next_ordinal = 0
        self._engines: dict[str, _Engine] = {}
        self._deaths: Counter[int] = Counter()
        self.outstanding = 0  # samples that engines hold
        self._unfinished = 0  # of these, still to be decoded
        self._known, self._known_speed = 0, 0.0  # engines whose speed is known, and its sum in samples/s

    @property
    def finished(self) -> bool:
        """Whether nothing is pending and no engine holds anything."""
        return self.pending == 0 and self.outstanding == 0

    def leave_out(self, kept: Mapping[str, Set[int]]) -> None:
        """Do not hand out these samples of these questions. Earlier sessions saved them. Call it before `assign`."""
        self._kept = kept
        self.pending -= sum(map(len, kept.values()))

    def held(self, name: str) -> list[RolloutRequest]:
        """Return the requests that an engine has not delivered."""
        return list(self._engines[name].outstanding.values())

    def add_engine(self, name: str, max_num_seqs: int) -> None:
        """Count on an engine that decodes up to `max_num_seqs` sequences at once."""
        self._engines[name] = _Engine(max_num_seqs)

    def assign(self, name: str, unfinished: int, now: float) -> list[RolloutRequest]:
        """Return what an engine takes on; empty if it holds enough or nothing is pending.

        Args:
            name: The engine.
            unfinished: Samples that it has still to decode.
            now: The time, in seconds from any origin.
        """
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
        """Whether an engine has room beyond the part that it was given. It asks again soon: the others may have finished
        samples meanwhile."""
        return self._engines[name].asks_soon

    def to_reclaim(self, name: str) -> int:
        """Return how many samples an engine is to return, of those that it has not begun. That is what it holds beyond its
        share, once nothing is pending or if it is slow."""
        engine = self._engines[name]
        excess = engine.unfinished - self._share(engine)
        due = not self.pending or self._relative_speed(engine) < SLOW
        return excess if due and excess >= SMALLEST_SLICE else 0

    def return_samples(self, name: str, cuts: Iterable[Cut]) -> int:
        """Put back samples that an engine has returned: those of each chunk from the given number on.

        Returns:
            How many samples these are.

        Raises:
            KeyError: The engine does not hold such a chunk.
        """
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
        """Return how many of all samples still to be decoded the engine can do while the others do theirs."""
        return math.ceil((self.pending + self._unfinished) * self._fraction(engine))

    def _part(self, engine: _Engine) -> int:
        """Return how many pending samples the engine may take at once (guided self-scheduling, Polychronopoulos and Kuck
        1987). Samples of one length end together. Without this limit, the first
        engine to say so takes what the others are about to ask for."""
        return max(SMALLEST_SLICE, math.ceil(self.pending * self._fraction(engine)))

    def _fraction(self, engine: _Engine) -> float:
        """Return the engine's part of the speed of all engines, including those that still start."""
        return self._relative_speed(engine) / max(1, self.expected_engines, len(self._engines))

    def _relative_speed(self, engine: _Engine) -> float:
        """Return the engine's speed divided by the mean of the known speeds. An unknown speed counts as the mean."""
        return 1.0 if engine.speed is None else engine.speed / (self._known_speed / self._known)

    def complete(self, name: str, chunks: Iterable[ChunkKey]) -> list[RolloutRequest]:
        """Return the requests of the chunks that an engine has delivered. Raises KeyError for one that it does not hold."""
        engine = self._engines[name]
        delivered = [engine.outstanding.pop(key) for key in chunks]
        samples = sum(map(len, delivered))
        engine.samples -= samples
        self.outstanding -= samples
        if any(map(self._is_suspect, delivered)):
            self._suspects_at_once = min(2 * self._suspects_at_once, MOST_SUSPECTS)
        return delivered

    def put_back(self, requests: Iterable[RolloutRequest]) -> None:
        """Put requests at the front of the queue. Their payload was lost on its way to a scorer, say."""
        for request in requests:
            (self._suspects if self._is_suspect(request) else self._queue).appendleft(request)
            self.pending += len(request)

    def remove_engine(self, name: str) -> list[RolloutRequest]:
        """Forget an engine that died, and return what it held to the front of the queue.

        A question that was in flight at `most_deaths` - 1 deaths is a suspect. It is quarantined if it is the only suspect
        at the next death. Many deaths at once make suspects of whole batches, and most of them are innocent. So an engine
        gets one suspect at a time, and twice as many after each that completes. A death resets that to one. One death
        quarantines one question at most, and innocent ones are cleared in a few rounds.

        Returns:
            The requests that are quarantined instead of queued.
        """
        engine = self._engines.pop(name)
        self.outstanding -= engine.samples
        self._unfinished -= engine.unfinished
        self._count_speed(engine, -1)
        held = list(engine.outstanding.values())
        # By question, not by chunk: several chunks of one question on this engine saw one death, not several.
        suspects = {request.ordinal for request in held if self._is_suspect(request)}
        self._deaths.update({request.ordinal for request in held} - suspects)
        self._suspects_at_once = 1
        quarantined = [r for r in held if r.ordinal in suspects] if len(suspects) == 1 else []
        self.put_back(r for r in reversed(held) if r not in quarantined)
        return quarantined

    def _is_suspect(self, request: RolloutRequest) -> bool:
        return self._deaths[request.ordinal] >= self._most_deaths - 1

    def _take(self, wanted: int) -> RolloutRequest | None:
        """Return the next chunk: a whole question, or `wanted` samples of a large one; None if only suspects are left."""
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
        """Return the next question, or its first gap between kept samples. Its other gaps are queued."""
        question = next(self._questions, None)
        if question is None:
            return None
        ordinal = self._next_ordinal
        self._next_ordinal += 1
        whole = RolloutRequest(ordinal, ordinal % self._num_scorers, question, 0, self._samples_per_question)
        if question.question_id not in self._kept:
            return whole
        ends = [-1, *sorted(self._kept[question.question_id]), len(whole)]
        gaps = [replace(whole, first=last + 1, stop=end) for last, end in pairwise(ends) if end > last + 1]
        self._queue.extend(gaps[1:])
        return gaps[0]
