"""The scorers of a session: what each of them holds, and what becomes of it when one dies.

The session decides what a commit or a loss means for the run. This module handles references, receipts and counters,
and reads no generation. Invariant: a payload is kept until every question in it is committed, so a new scorer can take
over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray.exceptions import ObjectLostError, RayError, RayTaskError

from rollout_ray.actors.scorer import Receipt
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.records import RolloutRequest
from rollout_ray.driver.failures import memory_remedy, reason_of
from rollout_ray.driver.handle import ScorerFactory, ScorerHandle
from rollout_ray.storage.event_log import EventLog

log = logging.getLogger(__name__)

MOST_UNSCORED = 4096  # samples; or twice what the engines decode at once, if that is more


@dataclass(eq=False)
class Scorer:
    """One scorer.

    Attributes:
        payloads: Each payload, with its requests that are not committed yet.
        calls: Each call in flight, with its payload and the samples in it; None and 0 for a call without a payload.
        unscored: Samples of the calls in flight.
        deaths: Deaths of the scorers of this index since something was committed.
        waiting: Complete questions that it holds for its next part.
        last_receipt: When its last answer came (s, on the driver's clock).
    """

    scorer_index: int
    handle: ScorerHandle
    deaths: int = 0
    last_receipt: float = 0.0
    payloads: dict[Any, list[RolloutRequest]] = field(default_factory=dict)
    calls: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    unscored: int = 0
    waiting: int = 0

    def flush(self) -> None:
        """Ask for a part with the complete questions."""
        self.calls[self.handle.flush()] = None, 0

    def forget(self, committed: Set[int]) -> None:
        """Drop the requests of committed questions, and payloads that hold no others."""
        for payload, requests in list(self.payloads.items()):
            requests[:] = [r for r in requests if r.ordinal not in committed]
            if not requests:
                del self.payloads[payload]


class Answer(NamedTuple):
    """What came of a call: a receipt, or requests whose payload was lost with its node, or neither."""

    receipt: Receipt | None = None
    lost: tuple[RolloutRequest, ...] = ()


class ScorerPool:
    """A scorer for each index below `num_scorers`."""

    def __init__(
        self,
        cfg: RunConfig,
        scorers: ScorerFactory,
        num_scorers: int,
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cfg = cfg
        self._factory = scorers
        self._events = events
        self._clock = clock
        self.most_unscored = MOST_UNSCORED
        self._scorers = [self._start(scorer_index) for scorer_index in range(num_scorers)]

    def _start(self, scorer_index: int, deaths: int = 0) -> Scorer:
        scorer = Scorer(scorer_index, self._factory.launch(scorer_index), deaths, self._clock())
        scorer.calls[scorer.handle.begin()] = None, 0
        return scorer

    @property
    def count(self) -> int:
        """Return the number of scorers."""
        return len(self._scorers)

    @property
    def unscored(self) -> int:
        """Return how many samples wait to be scored."""
        return sum(scorer.unscored for scorer in self._scorers)

    @property
    def behind(self) -> bool:
        """Whether so much waits to be scored that the engines get nothing new."""
        return self.unscored >= self.most_unscored

    def calls(self) -> dict[Any, Scorer]:
        """Return the calls in flight, each with its scorer."""
        return {call: scorer for scorer in self._scorers for call in scorer.calls}

    def unread(self) -> set[Any]:
        """Return the payloads that a scorer may still have to fetch from the node of the engine that made them."""
        return {payload for scorer in self._scorers for payload, _ in scorer.calls.values()}

    def score(self, scorer_index: int, payload: Any, requests: list[RolloutRequest]) -> None:
        """Pass on a payload: a reference to a list[Generated] of these requests."""
        scorer = self._scorers[scorer_index]
        scorer.payloads[payload] = requests
        samples = sum(map(len, requests))
        scorer.unscored += samples
        ordinals = frozenset(request.ordinal for request in requests)
        scorer.calls[scorer.handle.score(payload, ordinals)] = payload, samples

    def flush(self) -> None:
        """Have every scorer commit its complete questions."""
        for scorer in self._scorers:
            scorer.flush()

    def flush_due(self, *, last: bool) -> None:
        """Ask for a part where questions have waited long enough, or where nothing more comes (`last`)."""
        now = self._clock()
        for scorer in self._scorers:
            late = now - scorer.last_receipt >= self._cfg.output.flush_seconds
            if scorer.waiting and not scorer.calls and (late or last):
                scorer.flush()

    def answered(self, scorer: Scorer, call: Any) -> Answer:
        """Take up a call that has ended. A scorer that died is replaced.

        Raises:
            RolloutError: Scorers of one index die one after the other without a commit; and whatever a scorer raised.
        """
        payload, samples = scorer.calls.pop(call)
        scorer.unscored -= samples
        if scorer is not self._scorers[scorer.scorer_index]:
            return Answer()  # its successor was given everything that it had not committed
        try:
            receipt: Receipt = self._factory.calls.result(call)
        except RayTaskError as error:
            if not isinstance(error.cause, ObjectLostError):
                raise _as_rollout_error(error) from error
            self._events.write("payload_lost", draws=samples, error=type(error.cause).__name__)
            return Answer(lost=tuple(scorer.payloads.pop(payload, ())))
        except RayError as error:  # its process or node is gone, or Ray ended it because memory was short
            self._died(scorer, error)
            return Answer()
        scorer.waiting, scorer.last_receipt = receipt.waiting, self._clock()
        if receipt.committed:
            scorer.deaths = 0
            scorer.forget(frozenset(receipt.committed))
        return Answer(receipt)

    def _died(self, scorer: Scorer, error: Exception) -> None:
        """Replace a scorer. The new one gets every payload that holds an uncommitted question."""
        reason = reason_of(error)
        self._events.write("scorer_died", lane=scorer.scorer_index, error=reason)
        scorer.handle.end()
        if scorer.deaths >= self._cfg.resources.max_engine_deaths:
            raise RolloutError(
                f"scorer-{scorer.scorer_index} died {scorer.deaths + 1} times in a row and nothing was committed: {reason} "
                f"{memory_remedy(error) or 'Look for memory that ran out'}; the same command goes on from what is complete"
            )
        log.warning("scorer-%d died and is started again: %s", scorer.scorer_index, reason)
        self._scorers[scorer.scorer_index] = self._start(scorer.scorer_index, scorer.deaths + 1)
        for payload, requests in scorer.payloads.items():
            self.score(scorer.scorer_index, payload, requests)

    def save(self, timeout_s: float) -> tuple[int, int]:
        """Have every scorer save what it holds, without what it has not scored yet, and wait for that.

        It commits the complete questions, and saves the samples of the others. A warning names a scorer that cannot.

        Returns:
            How many questions were committed, and how many samples of others were saved.
        """
        for scorer in self._scorers:
            for call, (payload, _) in scorer.calls.items():
                if payload is not None:
                    scorer.handle.cancel(call)  # a call that has begun goes on
        calls = {scorer.handle.save(): scorer for scorer in self._scorers}
        ended = self._factory.calls.wait(list(calls), timeout_s, len(calls))
        committed = saved = 0
        for call, scorer in calls.items():
            try:
                if call not in ended:
                    raise TimeoutError(f"no answer within {timeout_s:.0f} s")
                receipt: Receipt = self._factory.calls.result(call)
            except (RayError, TimeoutError) as error:
                log.warning("scorer-%d could not save: %s", scorer.scorer_index, reason_of(error))
                continue
            committed += len(receipt.committed)
            saved += receipt.saved
        return committed, saved

    def close(self) -> None:
        """End the scorers, except those that are kept. One with a call in flight might still commit to this run."""
        for scorer in self._scorers:
            if scorer.calls or not self._factory.keep(scorer.scorer_index, scorer.handle):
                scorer.handle.end()


def _as_rollout_error(error: RayTaskError) -> RolloutError:
    """Return what a scorer raised, by its own name if it is one of ours (the storage's failures are)."""
    cause: Any = error.cause
    if isinstance(cause, RolloutError):
        return cause
    return RolloutError(f"a scorer failed: {cause}")
