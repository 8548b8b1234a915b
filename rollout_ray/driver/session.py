"""The driver's loop: keeps engines supplied and scorers fed until every question is committed.

It decides what happens next, and leaves to fleet.py what becomes of an engine, to scorers.py what becomes of a scorer.
It handles references, receipts and counters, and reads no generation.
Invariant: a payload that is lost with its node is drawn again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.engine import Exchange
from rollout_ray.core.errors import BudgetSpent, ConfigError, IncompleteError, Interrupted
from rollout_ray.core.records import Completion, Generated, RolloutRequest
from rollout_ray.driver.elastic import Elastic
from rollout_ray.driver.replica import Replica, reason_of
from rollout_ray.driver.replica_set import HEARTBEAT_S, ReplicaSet
from rollout_ray.driver.run_context import RunContext
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.driver.scorer_pool import IdleScorers, Scorer, Scorers
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.autoscaling import placed
from rollout_ray.ray_cluster.placement import scorers_for
from rollout_ray.ray_cluster.ray_internals import draining_nodes
from rollout_ray.telemetry.early_warnings import EarlyWarnings
from rollout_ray.telemetry.metrics import RunMetrics
from rollout_ray.telemetry.progress import Progress
from rollout_ray.telemetry.run_view import EngineView, RunView
from rollout_ray.telemetry.summary import Summary

log = logging.getLogger(__name__)

LEAVING_S = 0.05
SAVE_S = 30.0  # at a run's end before its work: for what the scorers have in hand, and then for what they commit


@dataclass(frozen=True)
class PoolResources:
    """What a pool lends to a run: its engines, and the scoring actors of the run before."""

    replica_set: ReplicaSet
    scorers: IdleScorers


def generate_missing(run: ResolvedRun, context: RunContext, pool_resources: PoolResources | None) -> Summary:
    """Generate, score and commit every question that is not done, and return what this session did.

    Without a pool's resources, this starts engines that hold the run's policy, and ends them. The caller is connected
    to Ray.

    Raises PlacementError, EngineError, LedgerError, and Interrupted on Ctrl-C or, as BudgetSpent, at the budget's end.
    """
    with ExitStack() as own:
        replica_set, idle = (pool_resources.replica_set, pool_resources.scorers) if pool_resources else (None, None)
        if replica_set is None:
            placement = placed(run, context.missing * run.samples_per_question)
            directory = context.directory
            replica_set = ReplicaSet(run, placement, str(directory.local("logs")) if directory.is_local else None)
            own.callback(replica_set.close)
        session = _Session(run, context, replica_set, idle)
        session.view.began = context.began
        try:
            with context.progress:
                session.run(context.progress)
        except (KeyboardInterrupt, BudgetSpent) as stop:
            if pool_resources is None:
                replica_set.close()  # what they draw now nobody waits for
            with suppress(KeyboardInterrupt):  # a second one ends the saving, too
                session.save()
            if not session.complete:
                raise session.stopped(spent=isinstance(stop, BudgetSpent)) from None
        finally:
            session.close()
        return session.summary()


class _Session:
    """One session's engines and scorers, and the loop over their answers."""

    def __init__(self, run: ResolvedRun, context: RunContext, replica_set: ReplicaSet, idle: IdleScorers | None) -> None:
        self._cfg, self._directory, self._events, self._replica_set = (
            run.config,
            context.directory,
            context.events,
            replica_set,
        )
        placement, events = replica_set.placement, context.events
        log.info(placement.note)
        events.write("placed", note=placement.note)
        num_scorers = scorers_for(run.config, placement.replicas)
        samples = run.samples_per_question
        self._missing = context.missing
        self._scheduler = Scheduler(
            context.questions.questions(context.done),
            self._missing,
            samples,
            num_scorers=num_scorers,
            expected_engines=placement.replicas,
        )
        self.view = RunView(
            total=len(context.questions), before=len(context.done), total_samples=self._missing * samples,
            engines={f"engine-{i}": EngineView() for i in range(placement.replicas)},
        )  # fmt: skip
        self._next_look = 0.0
        self._early, self._metrics = EarlyWarnings(), RunMetrics(context.directory.uri)
        replica_set.attach(run, num_scorers, self.view.engines, events)
        self._elastic = Elastic(
            run, replica_set, self._scheduler, self.view.engines, events, pool_resources=idle is not None
        )
        self._scorers = Scorers(run, context, placement, num_scorers, idle)

    # The loop

    def run(self, progress: Progress) -> None:
        """Returns when every missing question is committed."""
        budget = self._cfg.resources.budget_seconds
        while not self.complete:
            if budget is not None and time.monotonic() - self.view.began >= budget:
                raise BudgetSpent
            self._look_around()
            self._take_answers()
            self._supply_idle_engines()
            self._scorers.flush_due(last=self._scheduler.finished)
            self.view.watch(self._scheduler.pending, self._scorers.unscored, self._scorers.behind)
            progress.update(self.view)
            self._metrics.update(self.view)

    def _take_answers(self) -> None:
        calls, scoring = self._replica_set.calls(), self._scorers.calls()
        waiting = [*calls, *scoring]
        if not waiting and any(replica.leaving for replica in self._replica_set.replicas.values()):
            self._next_look = 0.0  # what they had in hand is out: they are started elsewhere once that is read
            time.sleep(LEAVING_S)
            return
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
        for replica, error in self._replica_set.hanging():
            self._engine_died(replica, error)
        if told := self._replica_set.leave(draining_nodes()):
            log.warning("the node of %s is about to go: what is complete is saved", ", ".join(told))
            self._events.write("node_draining", engines=told)
            self._scorers.flush()
        for name in self._replica_set.move_left():
            self._scheduler.remove_engine(name)
        self._elastic.look(self._scorers.unread())

    def _engine_answered(self, replica: Replica) -> None:
        (call, *finished), replica.call = replica.call, ()
        try:
            answer = ray.get(call)
        except RayTaskError as error:
            for payload in finished:  # each of them is that error, and Ray logs those that nobody read
                with suppress(RayError):
                    ray.get(payload)
            if isinstance(error.cause, ConfigError):  # the engine is sound, and would say the same again
                raise error.cause from error
            self._engine_died(replica, error.cause if isinstance(error.cause, Exception) else error)
            return
        except RayError as error:  # its process or node is gone, Ray ended it for want of memory, or could not start it
            self._engine_died(replica, error)
            return
        if isinstance(answer, BackendInfo) and not replica.started:
            self._replica_set.started(replica, answer)
            return
        if isinstance(answer, BackendInfo):
            self._scheduler.add_engine(replica.name, answer.max_num_seqs)
            most = 2 * len(self._replica_set.replicas) * answer.max_num_seqs
            self._scorers.most_unscored = max(self._scorers.most_unscored, most)
            self.view.engines[replica.name].places = answer.max_num_seqs
            self._replica_set.begun(replica, answer)
            if self.view.generation_began is None:
                self.view.generation_began = time.monotonic()
        else:
            self._replica_set.answered(replica, answer)
            self._deliver(replica, answer, finished)
        self._exchange(replica, unfinished=getattr(answer, "unfinished", 0))
        if not replica.call:
            self._events.write("engine_idle", engine=replica.name, pending=self._scheduler.pending)

    def _exchange(self, replica: Replica, unfinished: int) -> None:
        """Hands the engine what it has credit for; an engine with nothing to do is left alone. While the scorers are
        behind nothing new is drawn, so that what waits for them is bounded. What it holds beyond its share is asked
        back, from one that leaves all of it."""
        work: list[RolloutRequest] = []
        reclaim, soon = (unfinished if replica.leaving else 0), False
        if not (replica.leaving or self._scorers.behind):
            work = self._scheduler.assign(replica.name, unfinished, time.monotonic())
            reclaim, soon = self._scheduler.to_reclaim(replica.name), self._scheduler.asks_soon(replica.name)
        self._replica_set.exchange(replica, work, unfinished + sum(map(len, work)), reclaim, soon=soon)

    def _supply_idle_engines(self) -> None:
        if self._scheduler.pending:
            self._elastic.ensure_engine()
            for replica in self._replica_set.replicas.values():
                if replica.begun and not replica.call:
                    self._exchange(replica, unfinished=0)

    def _deliver(self, replica: Replica, exchange: Exchange, finished: Sequence[Any]) -> None:
        """Takes back what an engine gives back, and passes what it finished on to the scorers of their lanes."""
        if returned_samples := self._scheduler.return_samples(replica.name, exchange.returned):
            self._events.write("given_back", engine=replica.name, draws=returned_samples)
        delivered = self._scheduler.complete(replica.name, exchange.chunks)
        samples = sum(map(len, delivered))
        view = self.view.engines[replica.name]
        view.samples += samples
        view.tokens += exchange.tokens
        view.record_stats(exchange.stats)
        self.view.generated_samples += samples
        if delivered:
            self.view.last_generated = time.monotonic()
        for scorer_index, payload in enumerate(finished):
            if requests := [request for request in delivered if request.scorer_index == scorer_index]:
                replica.payloads.add(payload)
                self._scorers.score(scorer_index, payload, requests)

    def _scorer_answered(self, scorer: Scorer, call: Any) -> None:
        receipt, lost = self._scorers.answered(scorer, call)
        self._requeue(lost)
        if receipt and receipt.committed:
            self.view.committed += len(receipt.committed)
            self.view.summary.combine(receipt.summary)
            self._warn_early()

    def _requeue(self, lost: Sequence[RolloutRequest]) -> None:
        if lost:
            self.view.generated_samples -= sum(map(len, lost))
            self._scheduler.put_back(lost)

    def _warn_early(self) -> None:
        for text in self._early.news(self.view.summary):
            log.warning(text)
            self._events.write("early_warning", text=text)

    # Deaths

    def _engine_died(self, replica: Replica, error: Exception) -> None:
        """What the engine held goes back to the queue; the fleet decides about a replacement."""
        if replica.begun:
            for request in self._scheduler.remove_engine(replica.name):
                self._quarantine(request, reason_of(error))
        self._replica_set.died(replica, error)

    def _quarantine(self, request: RolloutRequest, reason: str) -> None:
        """A piece that was in flight at too many deaths becomes error trajectories."""
        text = f"in flight at several engine deaths, the last: {reason}"
        version = self._replica_set.policy.version
        completions = tuple(
            Completion(spec, "", 0, 0, "error", "none", text, version) for spec in range(request.first, request.stop)
        )
        self.view.generated_samples += len(request)
        payload = ray.put([Generated(request, completions)])
        self._scorers.score(request.scorer_index, payload, [request])

    # Ending

    @property
    def complete(self) -> bool:
        """Whether every missing question is committed."""
        return self.view.committed >= self._missing

    def save(self) -> None:
        """Commits every question that is complete, after an interrupt. What is not scored within SAVE_S is drawn again."""
        deadline = time.monotonic() + SAVE_S
        while (calls := self._scorers.calls()) and (left := deadline - time.monotonic()) > 0:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=left)
            for call in ready:
                self._scorer_answered(calls[call], call)
        self.view.committed += self._scorers.save(SAVE_S)

    def stopped(self, *, spent: bool) -> Interrupted:
        """What a session that ends before its work raises, once it is saved."""
        view, budget = self.view, self._cfg.resources.budget
        done = f"{view.before + view.committed} of {view.total} questions in {self._directory.uri}"
        self._events.write("stopped", spent=spent, committed=view.committed, account=view.account().to_dict())
        if spent:
            return BudgetSpent(f"the budget of {budget} is spent with {done}; the same command goes on for as long again")
        return Interrupted(f"stopped with {done}; the same command goes on from there")

    def close(self) -> None:
        """Ends the session's scorers, and its hold on the engines."""
        self._metrics.update(self.view, last=True)
        self._scorers.close()
        self._replica_set.detach()

    def summary(self) -> Summary:
        summary = self.view.summary
        summary.account = self.view.account()
        summary.generation_seconds = summary.account.generation_seconds
        summary.session_tokens = sum(view.tokens for view in self.view.engines.values())
        summary.engine_deaths = self._replica_set.deaths
        return summary
