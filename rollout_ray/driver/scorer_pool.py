"""The scoring actors of a session: what each of them holds, and what becomes of it when one dies.

Owns the scorers and the calls to them. What a commit or a loss means for the run is driver.py's. It handles references,
receipts and counters, and reads no generation.
Invariant: a payload is kept until every question in it is committed, so that a scorer can be replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from rollout_ray.actors.scorer import Receipt, ScorerActor
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.records import RolloutRequest
from rollout_ray.driver.replica import reason_of
from rollout_ray.driver.run_context import RunContext
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.autoscaling import beside_the_driver
from rollout_ray.ray_cluster.placement import Placement

log = logging.getLogger(__name__)

MOST_UNSCORED = 4096  # draws; or twice what the engines decode at once, where that is more


@dataclass
class Scorer:
    """One scoring actor. `payloads` maps a payload to its requests that are not committed yet; `calls` a call in flight to
    its payload and draws (None and 0 where it has none); `unscored` counts those draws; `deaths` those of its lane since
    something was committed."""

    scorer_index: int
    actor: Any
    payloads: dict[Any, list[RolloutRequest]] = field(default_factory=dict)
    calls: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    unscored: int = 0
    deaths: int = 0
    waiting: int = 0
    last_receipt: float = field(default_factory=time.monotonic)


class Answer(NamedTuple):
    """What came of a call: a receipt, or requests whose payload was lost with the node that held it, or neither."""

    receipt: Receipt | None = None
    lost: tuple[RolloutRequest, ...] = ()


class IdleScorers:
    """Scoring actors between two runs, by lane: each has imported what grading needs, which takes seconds."""

    def __init__(self) -> None:
        self._actors: dict[int, Any] = {}

    def take(self, scorer_index: int) -> Any | None:
        """The lane's actor, if there is one."""
        return self._actors.pop(scorer_index, None)

    def keep(self, scorer_index: int, actor: Any) -> None:
        """Holds an actor with no call in flight for the next run."""
        self._actors[scorer_index] = actor

    def close(self) -> None:
        """Ends them."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()


class Scorers:
    """A scoring actor for each of `lanes`, `idle` ones where there are any."""

    def __init__(
        self,
        run: ResolvedRun,
        context: RunContext,
        placement: Placement,
        num_scorers: int,
        idle: IdleScorers | None,
    ) -> None:
        self._run, self._cfg, self._placement = run, run.config, placement
        self._directory, self._events = context.directory, context.events
        self._idle = (
            idle if run.config.scoring.reward is None else None
        )  # the user's function may be another by the next run
        self.most_unscored = MOST_UNSCORED
        self._scorers = [self._start(scorer_index) for scorer_index in range(num_scorers)]

    def _start(self, scorer_index: int, deaths: int = 0) -> Scorer:
        actor = self._idle.take(scorer_index) if self._idle else None
        if actor is None:
            place = beside_the_driver() if self._placement.scales else "DEFAULT"
            actor = ray.remote(ScorerActor).options(num_cpus=0, scheduling_strategy=place).remote(scorer_index)
        scorer = Scorer(scorer_index, actor, deaths=deaths)
        scorer.calls[actor.begin.remote(self._directory, self._cfg, self._run.arms)] = None, 0
        if self._placement.gpus:  # else the engines' own start needs the cores
            actor.prepare.remote()
        return scorer

    @property
    def unscored(self) -> int:
        """Draws that wait to be scored."""
        return sum(scorer.unscored for scorer in self._scorers)

    @property
    def behind(self) -> bool:
        """Whether so much waits to be scored that nothing new shall be drawn."""
        return self.unscored >= self.most_unscored

    def calls(self) -> dict[Any, Scorer]:
        """The calls in flight, and whose each is."""
        return {call: scorer for scorer in self._scorers for call in scorer.calls}

    def unread(self) -> set[Any]:
        """The payloads that a scorer may still have to fetch from the node of the engine that made them."""
        return {payload for scorer in self._scorers for payload, _ in scorer.calls.values()}

    def score(self, scorer_index: int, payload: Any, requests: list[RolloutRequest]) -> None:
        """Passes a payload on, which is a reference to a list[Generated] of these requests."""
        scorer = self._scorers[scorer_index]
        scorer.payloads[payload] = requests
        samples = sum(map(len, requests))
        scorer.unscored += samples
        ordinals = frozenset(request.ordinal for request in requests)
        scorer.calls[scorer.actor.score.remote(payload, ordinals)] = payload, samples

    def flush(self) -> None:
        """Has every scorer commit what is complete."""
        for scorer in self._scorers:
            _flush(scorer)

    def flush_due(self, *, last: bool) -> None:
        """Asks for a part where questions have waited long enough, or nothing more is to come."""
        now = time.monotonic()
        for scorer in self._scorers:
            late = now - scorer.last_receipt >= self._cfg.output.flush_seconds
            if scorer.waiting and not scorer.calls and (late or last):
                _flush(scorer)

    def answered(self, scorer: Scorer, call: Any) -> Answer:
        """Takes up a call that has ended. A scorer that died is replaced.

        Raises RolloutError where scorers of a lane die one after the other without a commit, and what a scorer raised.
        """
        payload, samples = scorer.calls.pop(call)
        scorer.unscored -= samples
        if scorer is not self._scorers[scorer.scorer_index]:
            return Answer()  # it was replaced, and the other was asked all that it had not committed
        try:
            receipt: Receipt = ray.get(call)
        except RayTaskError as error:
            if not isinstance(error.cause, ObjectLostError):
                raise _as_rollout_error(error) from error
            self._events.write("payload_lost", draws=samples, error=type(error.cause).__name__)
            return Answer(lost=tuple(scorer.payloads.pop(payload, ())))
        except RayError as error:  # its process or node is gone, or Ray ended it for want of memory
            self._died(scorer, error)
            return Answer()
        scorer.waiting, scorer.last_receipt = receipt.waiting, time.monotonic()
        if receipt.committed:
            scorer.deaths = 0
            _forget(scorer, frozenset(receipt.committed))
        return Answer(receipt)

    def _died(self, scorer: Scorer, error: Exception) -> None:
        """A new scorer gets every payload that holds an uncommitted question."""
        reason = reason_of(error)
        self._events.write("scorer_died", lane=scorer.scorer_index, error=reason)
        ray.kill(scorer.actor)
        if scorer.deaths >= self._cfg.resources.max_engine_deaths:
            raise RolloutError(
                f"scorer-{scorer.scorer_index} died {scorer.deaths + 1} times in a row and nothing was committed: {reason}"
                " "
                "Look for memory that ran out; the same command goes on from what is complete"
            )
        log.warning("scorer-%d died and is started again: %s", scorer.scorer_index, reason)
        self._scorers[scorer.scorer_index] = self._start(scorer.scorer_index, scorer.deaths + 1)
        for payload, requests in scorer.payloads.items():
            self.score(scorer.scorer_index, payload, requests)

    def save(self, timeout_s: float) -> int:
        """Has every scorer commit what is complete, without what it has not scored yet, and waits for that; returns how
        many questions that were. One that cannot is named in a warning, and the others' questions are saved all the same.
        """
        for scorer in self._scorers:
            for call, (payload, _) in scorer.calls.items():
                if payload is not None:
                    ray.cancel(call)  # one that has begun goes on
        flushed = {scorer.actor.flush.remote(): scorer for scorer in self._scorers}
        ray.wait(list(flushed), num_returns=len(flushed), timeout=timeout_s)
        committed = 0
        for call, scorer in flushed.items():
            try:
                receipt: Receipt = ray.get(call, timeout=0)
            except RayError as error:
                log.warning("scorer-%d could not save: %s", scorer.scorer_index, reason_of(error) or type(error).__name__)
                continue
            committed += len(receipt.committed)
        return committed

    def close(self) -> None:
        """Ends the actors, but for those that are kept: one with a call in flight might yet commit to this run."""
        for scorer in self._scorers:
            if self._idle is not None and not scorer.calls:
                self._idle.keep(scorer.scorer_index, scorer.actor)
            else:
                ray.kill(scorer.actor)


def _flush(scorer: Scorer) -> None:
    scorer.calls[scorer.actor.flush.remote()] = None, 0


def _forget(scorer: Scorer, committed: Set[int]) -> None:
    """Drops the requests of committed questions, and payloads that hold nothing else."""
    for payload, requests in list(scorer.payloads.items()):
        requests[:] = [r for r in requests if r.ordinal not in committed]
        if not requests:
            del scorer.payloads[payload]


def _as_rollout_error(error: RayTaskError) -> RolloutError:
    """What a scorer raised, by its own name where that is one of ours (the storage's failures are)."""
    cause: Any = error.cause
    if isinstance(cause, RolloutError):
        return cause
    return RolloutError(f"a scorer failed: {cause}")
