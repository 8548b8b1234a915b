"""The driver's loop: keeps engines supplied and scorers fed until every question is committed.

It decides what happens next, and leaves to fleet.py what becomes of an engine. It holds references, receipts and
counters, never a generation.
Invariant: a payload is kept until every question in it is committed, so that a scorer can be replaced; a payload that
is lost with its engine is drawn again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from actors.backend import BackendInfo
from actors.engine import Exchange
from actors.placement import draining_nodes, scorers_for
from actors.scorer import Receipt, ScorerActor
from rollout_ray.autoscaling import beside_the_driver, placed
from rollout_ray.checkpoints import Policy
from rollout_ray.config import RunConfig
from rollout_ray.connection import connected
from rollout_ray.early import EarlyWarnings
from rollout_ray.elastic import Elastic
from rollout_ray.errors import BudgetSpent, ConfigError, IncompleteError, Interrupted, RolloutError
from rollout_ray.fleet import HEARTBEAT_S, Fleet
from rollout_ray.ledger import EventLog, RunDirectory
from rollout_ray.metrics import RunMetrics
from rollout_ray.progress import Progress
from rollout_ray.questions import QuestionSet
from rollout_ray.records import Arm, Completion, Generated, RolloutRequest
from rollout_ray.scheduler import Scheduler
from rollout_ray.slots import Slot, reason_of
from rollout_ray.summary import Summary
from rollout_ray.view import EngineView, RunView

log = logging.getLogger(__name__)

MOST_UNSCORED = 4096  # draws; or twice what the engines decode at once, where that is more


@dataclass
class _Scorer:
    """One scoring actor. `payloads` maps a payload to its requests that are not committed yet; `calls` maps a call in
    flight to its payload and draws (None and 0 for a flush); `unscored` counts the draws of all calls in flight;
    `deaths` those of its lane since something was committed."""

    lane: int
    actor: Any
    payloads: dict[Any, list[RolloutRequest]] = field(default_factory=dict)
    calls: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    unscored: int = 0
    deaths: int = 0
    waiting: int = 0
    last_receipt: float = field(default_factory=time.monotonic)


def draw_missing(
    cfg: RunConfig,
    arms: Sequence[Arm],
    questions: QuestionSet,
    done: Set[str],
    run: RunDirectory,
    events: EventLog,
    progress: Progress,
    policy: Policy,
    fleet: Fleet | None,
) -> Summary:
    """Draws, scores and commits every question that is not in `done`; returns what this session did. Without a `fleet`,
    which a pool lends, engines that hold `policy` are started, and ended afterwards.

    Raises PlacementError, EngineError, LedgerError, and Interrupted on Ctrl-C or, as BudgetSpent, at the budget's end.
    """
    began = time.monotonic()
    with connected(cfg), ExitStack() as own:
        lent = fleet is not None
        if fleet is None:
            placement = placed(cfg, (len(questions) - len(done)) * sum(arm.samples for arm in arms))
            fleet = Fleet(cfg, placement, policy, str(run.local("logs")) if run.is_local else None)
            own.callback(fleet.close)
        session = _Session(cfg, arms, questions, done, run, events, fleet, lent)
        session.view.began = began
        try:
            with progress:
                session.run(progress)
        except (KeyboardInterrupt, BudgetSpent) as stop:
            session.save()
            raise session.stopped(spent=isinstance(stop, BudgetSpent)) from None
        finally:
            session.close()
        return session.summary()


class _Session:
    """One session's engines and scorers, and the loop over their answers."""

    def __init__(
        self,
        cfg: RunConfig,
        arms: Sequence[Arm],
        questions: QuestionSet,
        done: Set[str],
        run: RunDirectory,
        events: EventLog,
        fleet: Fleet,
        lent: bool,
    ) -> None:
        self._cfg, self._arms, self._run, self._events, self._fleet = cfg, tuple(arms), run, events, fleet
        placement = fleet.placement
        log.info(placement.note)
        events.write("placed", note=placement.note)
        lanes = scorers_for(cfg, placement.replicas)
        draws = sum(arm.samples for arm in arms)
        self._missing = len(questions) - len(done)
        self._scheduler = Scheduler(
            questions.questions(done), self._missing, draws, lanes=lanes, expected_engines=placement.replicas
        )
        self.view = RunView(
            total=len(questions), before=len(done), total_draws=self._missing * draws,
            engines={f"engine-{i}": EngineView() for i in range(placement.replicas)},
        )  # fmt: skip
        self._most_unscored = MOST_UNSCORED
        self._next_look = 0.0
        self._early, self._metrics = EarlyWarnings(), RunMetrics(run.uri)
        fleet.attach(cfg, arms, self.view.engines, events)
        self._elastic = Elastic(cfg, fleet, self._scheduler, self.view.engines, events, lent)
        self._scorers = [self._start_scorer(lane) for lane in range(lanes)]

    def _start_scorer(self, lane: int, deaths: int = 0) -> _Scorer:
        place = beside_the_driver() if self._fleet.placement.scales else "DEFAULT"
        options = {"num_cpus": 0, "scheduling_strategy": place}
        actor = ray.remote(ScorerActor).options(**options).remote(lane, self._run, self._cfg, self._arms)
        if self._fleet.placement.gpus:  # else the engines' own start needs the cores
            actor.prepare.remote()
        return _Scorer(lane, actor, deaths=deaths)

    # The loop

    def run(self, progress: Progress) -> None:
        """Returns when every missing question is committed."""
        budget = self._cfg.resources.budget_seconds
        while self.view.committed < self._missing:
            if budget is not None and time.monotonic() - self.view.began >= budget:
                raise BudgetSpent
            self._look_around()
            self._take_answers()
            self._supply_idle_engines()
            self._flush_scorers()
            unscored = sum(scorer.unscored for scorer in self._scorers)
            self.view.watch(self._scheduler.pending, unscored, unscored >= self._most_unscored)
            progress.update(self.view)
            self._metrics.update(self.view)

    def _take_answers(self) -> None:
        calls = self._fleet.calls()
        scoring = {call: scorer for scorer in self._scorers for call in scorer.calls}
        waiting = [*calls, *scoring]
        if not waiting:
            raise IncompleteError(f"nothing is under way and {self._missing - self.view.committed} questions are missing")
        ready, _ = ray.wait(waiting, num_returns=1, timeout=HEARTBEAT_S)
        if ready:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for call in ready:
            if call in calls:
                self._engine_answered(calls[call])
            else:
                self._scorer_answered(scoring[call], call)

    def _look_around(self) -> None:
        """Once a heartbeat: engines that hang, nodes that are about to go, and what nodes there are."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + HEARTBEAT_S
        if load := self.view.sample():
            self._events.write("load", **load)
        for slot, error in self._fleet.hanging():
            self._engine_died(slot, error)
        if told := self._fleet.leave(draining_nodes()):
            log.warning("the node of %s is about to go: what is complete is saved", ", ".join(told))
            self._events.write("node_draining", engines=told)
            for scorer in self._scorers:
                self._flush(scorer)
        for name in self._fleet.move_left():
            self._scheduler.remove_engine(name)
        self._elastic.look({payload for scorer in self._scorers for payload, _ in scorer.calls.values()})

    def _engine_answered(self, slot: Slot) -> None:
        call, slot.call = slot.call, None
        try:
            answer = ray.get(call)
        except RayActorError as error:
            self._engine_died(slot, error)
            return
        except RayTaskError as error:
            if isinstance(error.cause, ConfigError):  # the engine is sound, and would say the same again
                raise error.cause from error
            self._engine_died(slot, error.cause if isinstance(error.cause, Exception) else error)
            return
        if isinstance(answer, BackendInfo) and not slot.started:
            self._fleet.started(slot, answer)
            return
        if isinstance(answer, BackendInfo):
            self._scheduler.add_engine(slot.name, answer.max_num_seqs)
            self._most_unscored = max(self._most_unscored, 2 * len(self._fleet.slots) * answer.max_num_seqs)
            self.view.engines[slot.name].places = answer.max_num_seqs
            self._fleet.begun(slot, answer)
            if self.view.generation_began is None:
                self.view.generation_began = time.monotonic()
        else:
            self._fleet.answered(slot, answer)
            self._deliver(slot, answer)
        self._exchange(slot, unfinished=getattr(answer, "unfinished", 0))
        if slot.call is None:
            self._events.write("engine_idle", engine=slot.name, pending=self._scheduler.pending)

    def _exchange(self, slot: Slot, unfinished: int) -> None:
        """Hands the engine what it has credit for; an engine with nothing to do is left alone. While the scorers are
        behind nothing new is drawn, so that what waits for them is bounded. What it holds beyond its share is asked
        back, from one that leaves all of it."""
        behind = sum(scorer.unscored for scorer in self._scorers) >= self._most_unscored
        work: list[RolloutRequest] = []
        recalled = unfinished if slot.leaving else 0
        if not (slot.leaving or behind):
            work = self._scheduler.assign(slot.name, unfinished, time.monotonic())
            recalled = self._scheduler.recall(slot.name)
        self._fleet.exchange(slot, work, unfinished + sum(map(len, work)), recalled)

    def _supply_idle_engines(self) -> None:
        if self._scheduler.pending:
            self._elastic.ensure_engine()
            for slot in self._fleet.slots.values():
                if slot.begun and slot.call is None:
                    self._exchange(slot, unfinished=0)

    def _deliver(self, slot: Slot, exchange: Exchange) -> None:
        """Takes back what an engine gives back, and passes its payloads on to the scorers of their lanes."""
        if given_back := self._scheduler.give_back(slot.name, exchange.returned):
            self._events.write("given_back", engine=slot.name, draws=given_back)
        delivered = self._scheduler.complete(slot.name, exchange.pieces)
        draws = sum(map(len, delivered))
        view = self.view.engines[slot.name]
        view.draws += draws
        view.tokens += exchange.tokens
        view.told(exchange.stats)
        self.view.generated_draws += draws
        if delivered:
            self.view.last_generated = time.monotonic()
        slot.payloads.update(exchange.payloads.values())
        for lane, payload in exchange.payloads.items():
            self._score(self._scorers[lane], payload, [r for r in delivered if r.lane == lane])

    def _score(self, scorer: _Scorer, payload: Any, requests: list[RolloutRequest]) -> None:
        scorer.payloads[payload] = requests
        draws = sum(map(len, requests))
        scorer.unscored += draws
        scorer.calls[scorer.actor.score.remote(payload, frozenset(r.ordinal for r in requests))] = payload, draws

    def _flush(self, scorer: _Scorer) -> None:
        scorer.calls[scorer.actor.flush.remote()] = None, 0

    def _scorer_answered(self, scorer: _Scorer, call: Any) -> None:
        payload, draws = scorer.calls.pop(call)
        scorer.unscored -= draws
        try:
            receipt: Receipt = ray.get(call)
        except RayActorError as error:
            self._scorer_died(scorer, error)
            return
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, ObjectLostError):
                raise _as_rollout_error(error) from error
            # The payload was lost with the engine that made it: its draws are drawn again.
            lost = scorer.payloads.pop(payload, [])
            self._events.write("payload_lost", draws=draws, error=type(error).__name__)
            self.view.generated_draws -= sum(map(len, lost))
            self._scheduler.put_back(lost)
            return
        scorer.waiting, scorer.last_receipt = receipt.waiting, time.monotonic()
        if receipt.committed:
            scorer.deaths = 0
            self._committed(scorer, frozenset(receipt.committed))
            self.view.summary.combine(receipt.summary)
            self._warn_early()

    def _warn_early(self) -> None:
        for text in self._early.news(self.view.summary):
            log.warning(text)
            self._events.write("early_warning", text=text)

    def _committed(self, scorer: _Scorer, ordinals: Set[int]) -> None:
        self.view.committed += len(ordinals)
        for payload, requests in list(scorer.payloads.items()):
            requests[:] = [r for r in requests if r.ordinal not in ordinals]
            if not requests:
                del scorer.payloads[payload]

    def _flush_scorers(self) -> None:
        """Asks for a part where questions have waited long enough, or nothing more is to come."""
        now = time.monotonic()
        for scorer in self._scorers:
            late = now - scorer.last_receipt >= self._cfg.output.flush_seconds
            if scorer.waiting and not scorer.calls and (late or self._scheduler.finished):
                self._flush(scorer)

    # Deaths

    def _engine_died(self, slot: Slot, error: Exception) -> None:
        """What the engine held goes back to the queue; the fleet decides about a replacement."""
        if slot.begun:
            for request in self._scheduler.remove_engine(slot.name):
                self._set_aside(request, reason_of(error))
        self._fleet.died(slot, error)

    def _set_aside(self, request: RolloutRequest, reason: str) -> None:
        """A piece that was in flight at too many deaths becomes error trajectories."""
        text = f"in flight at several engine deaths, the last: {reason}"
        version = self._fleet.policy.version
        completions = tuple(
            Completion(draw, "", 0, 0, "error", "none", text, version) for draw in range(request.first, request.stop)
        )
        self.view.generated_draws += len(request)
        payload = ray.put([Generated(request, completions)])
        self._score(self._scorers[request.lane], payload, [request])

    def _scorer_died(self, scorer: _Scorer, error: Exception) -> None:
        """A new scorer gets every payload that holds an uncommitted question. Raises RolloutError where scorers of this
        lane die one after the other without a commit."""
        if scorer is not self._scorers[scorer.lane]:
            return  # a second call of a scorer that was replaced already
        reason = reason_of(error)
        self._events.write("scorer_died", lane=scorer.lane, error=reason)
        ray.kill(scorer.actor)
        if scorer.deaths >= self._cfg.resources.max_engine_deaths:
            raise RolloutError(
                f"scorer-{scorer.lane} died {scorer.deaths + 1} times in a row and nothing could be committed: {reason} "
                "Look for memory that ran out; the same command goes on from what is complete"
            )
        log.warning("scorer-%d died and is started again: %s", scorer.lane, reason)
        replacement = self._start_scorer(scorer.lane, scorer.deaths + 1)
        self._scorers[scorer.lane] = replacement
        for payload, requests in scorer.payloads.items():
            self._score(replacement, payload, requests)

    # Ending

    def save(self) -> None:
        """Commits every question that is complete, after an interrupt."""
        for scorer in self._scorers:
            try:
                for call in list(scorer.calls):
                    self._scorer_answered(scorer, call)
                receipt: Receipt = ray.get(scorer.actor.flush.remote())
                self.view.committed += len(receipt.committed)
            except RayError as error:
                log.warning("scorer-%d could not save: %s", scorer.lane, error)

    def stopped(self, *, spent: bool) -> Interrupted:
        """What a session that ends before its work raises, once it is saved."""
        view, budget = self.view, self._cfg.resources.budget
        done = f"{view.before + view.committed} of {view.total} questions in {self._run.uri}"
        self._events.write("stopped", spent=spent, committed=view.committed, account=view.account().to_dict())
        if spent:
            return BudgetSpent(f"the budget of {budget} is spent with {done}; the same command goes on for as long again")
        return Interrupted(f"stopped with {done}; the same command goes on from there")

    def close(self) -> None:
        """Ends the session's scorers, and its hold on the engines."""
        self._metrics.update(self.view, last=True)
        for scorer in self._scorers:
            ray.kill(scorer.actor)
        self._fleet.detach()

    def summary(self) -> Summary:
        summary = self.view.summary
        summary.account = self.view.account()
        summary.generation_seconds = summary.account.generation_seconds
        summary.session_tokens = sum(view.tokens for view in self.view.engines.values())
        summary.engine_deaths = self._fleet.deaths
        return summary


def _as_rollout_error(error: RayTaskError) -> RolloutError:
    """What a scorer raised, by its own name where that is one of ours (the storage's failures are)."""
    cause: Any = error.cause
    if isinstance(cause, RolloutError):
        return cause
    return RolloutError(f"a scorer failed: {cause}")
