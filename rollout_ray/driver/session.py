"""One session of a run: keep engines supplied and scorers fed until every question is committed.

It decides what happens next. The replica set replaces engines, and the scorer pool replaces scorers. dispatch.py moves
the work between them.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from rollout_ray.core.errors import BudgetSpent, IncompleteError, Interrupted, TooManyErrors
from rollout_ray.core.records import sample_specs
from rollout_ray.driver.budget import needed_seconds, spent_words
from rollout_ray.driver.dispatch import Dispatch
from rollout_ray.driver.elastic import Elastic
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.ray_handles import IdleScorers, RayCalls, RayEngines, RayScorers
from rollout_ray.driver.replica import ReplicaState
from rollout_ray.driver.replica_set import ReplicaSet
from rollout_ray.driver.run_context import RunContext
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.driver.scorer_pool import ScorerPool
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.ray_cluster.autoscaling import placed
from rollout_ray.ray_cluster.placement import scorers_for
from rollout_ray.ray_cluster.ray_internals import draining_nodes
from rollout_ray.telemetry.error_share import refuse_failing_session
from rollout_ray.telemetry.metrics import RunMetrics
from rollout_ray.telemetry.progress import Progress
from rollout_ray.telemetry.run_view import EngineView, RunView
from rollout_ray.telemetry.summary import Summary

log = logging.getLogger(__name__)

HAND_OVER_S = 10.0  # after an early stop: for what the engines hold; they answer within a heartbeat
SAVE_S = 30.0  # after an early stop: for what the scorers hold, and then for what they commit


@dataclass(frozen=True)
class PoolResources:
    """What a pool gives to a run: its engines, and the scoring actors of the run before."""

    replica_set: ReplicaSet
    scorers: IdleScorers


def generate_missing(run: ResolvedRun, context: RunContext, pool_resources: PoolResources | None) -> Summary:
    """Generate, score and commit every question that is not done, and return what this session did.

    Without a pool's resources, this starts engines that hold the run's policy, and ends them. The caller is connected
    to Ray.

    Raises:
        PlacementError: The machines cannot hold the engines.
        EngineError: No engine is left.
        LedgerError: The run directory cannot be written.
        Interrupted: Ctrl-C or SIGTERM stopped the session; BudgetSpent: the budget did. It is saved.
        TooManyErrors: Functions of the user fail too often. The session is saved.
    """
    with ExitStack() as own:
        replica_set, idle = (pool_resources.replica_set, pool_resources.scorers) if pool_resources else (None, None)
        if replica_set is None:
            placement = placed(run, context.missing * run.samples_per_question)
            directory = context.directory
            logs = str(directory.local("logs")) if directory.is_local else None
            replica_set = ReplicaSet(run, RayEngines(placement, logs))
            own.callback(replica_set.close)
        session = _Session(run, context, replica_set, idle)
        try:
            with context.progress:
                session.run(context.progress)
        except (KeyboardInterrupt, BudgetSpent, TooManyErrors) as stop:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C ends the saving, too
                session.take_finished()
                if pool_resources is None:
                    replica_set.close()  # nobody waits for what they generate now
                session.save()
            if not session.complete:
                stopped = session.stopped(spent=isinstance(stop, BudgetSpent))
                raise stop if isinstance(stop, TooManyErrors) else stopped from None
        finally:
            session.close()
        return session.summary()


class _Session:
    """One session's engines and scorers, and the loop over their answers."""

    def __init__(self, run: ResolvedRun, context: RunContext, replica_set: ReplicaSet, idle: IdleScorers | None) -> None:
        self._cfg = run.config
        self._directory = context.directory
        self._events = context.events
        self._replica_set = replica_set
        placement = replica_set.placement
        log.info(placement.note)
        self._events.write("placed", note=placement.note)
        num_scorers = scorers_for(run.config, placement.replicas)
        self._missing = context.missing
        self._scheduler = Scheduler(
            context.questions.questions(context.done),
            self._missing,
            run.samples_per_question,
            num_scorers=num_scorers,
            expected_engines=placement.replicas,
        )
        self._scheduler.leave_out(context.kept)
        self._samples_before = len(context.done) * run.samples_per_question
        self._saved_samples = 0  # of questions that are not complete
        self.view = RunView(
            total=len(context.questions),
            before=len(context.done),
            total_samples=self._scheduler.pending,
            engines={f"engine-{i}": EngineView() for i in range(placement.replicas)},
            began=context.began,
            on_cpu=not placement.gpus and run.config.engine.backend == "vllm",
            arm_names=[spec.arm.name for spec in sample_specs(run.arms)],
        )
        self._next_look = 0.0
        self._metrics = RunMetrics(context.directory.uri)
        replica_set.attach(run, num_scorers, self.view.engines, self._events)
        self._elastic = Elastic(run, replica_set, self._scheduler, in_pool=idle is not None)
        self._scorers = ScorerPool(run.config, RayScorers(run, context, placement, idle), num_scorers, self._events)
        self._dispatch = Dispatch(RayCalls(), self._scheduler, replica_set, self._scorers, self.view, self._events)

    # The loop

    def run(self, progress: Progress) -> None:
        """Return when every missing question is committed."""
        budget = self._cfg.resources.budget_seconds
        while not self.complete:
            if budget is not None and time.monotonic() - self.view.began >= budget:
                raise BudgetSpent
            self._look_around()
            if not self._dispatch.take_answers():
                self._check_engines_move()
            refuse_failing_session(self.view.summary, self._samples_before, self._cfg.scoring.max_error_share)
            if self._scheduler.pending:
                self._elastic.ensure_engine()
            self._dispatch.supply_idle_engines()
            self._scorers.flush_due(last=self._scheduler.finished)
            self.view.watch(self._scheduler.pending, self._scorers.unscored, self._scorers.behind)
            progress.update(self.view)
            self._metrics.update(self.view)

    def _check_engines_move(self) -> None:
        """Nothing is under way. Raise IncompleteError, unless engines have drained: they move at the next look."""
        if not any(replica.state is ReplicaState.DRAINING for replica in self._replica_set.replicas.values()):
            missing = self._missing - self.view.committed
            raise IncompleteError(f"nothing is under way and {missing} questions are missing")
        self._next_look = 0.0

    def _look_around(self) -> None:
        """Look at engines that hang and at the cluster's nodes, once a heartbeat."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + HEARTBEAT_S
        if load := self.view.sample():
            self._events.write("load", **load)
        for replica, error in self._replica_set.hanging():
            self._dispatch.engine_died(replica, error)
        if told := self._replica_set.drain(draining_nodes()):
            log.warning("the node of %s is about to go: what is complete is saved", ", ".join(told))
            self._events.write("node_draining", engines=told)
            self._scorers.flush()
        for name in self._replica_set.move_drained():
            self._scheduler.remove_engine(name)
        self._elastic.look(self._scorers.unread())

    # Ending

    @property
    def complete(self) -> bool:
        """Whether every missing question is committed."""
        return self.view.committed >= self._missing

    def take_finished(self) -> None:
        """Pass on to the scorers what the engines have finished, after an interrupt. The engines drop the rest."""
        self._scorers.flush()  # what is complete does not wait for an engine that hangs
        self._dispatch.take_finished(HAND_OVER_S)

    def save(self) -> None:
        """Commit every question that is complete, and save the samples of the others, after an interrupt.

        What is not scored within SAVE_S is lost.
        """
        deadline = time.monotonic() + SAVE_S
        while (calls := self._scorers.calls()) and (left := deadline - time.monotonic()) > 0:
            for call in self._dispatch.calls.wait(list(calls), left):
                self._dispatch.scorer_answered(calls[call], call)
        committed, self._saved_samples = self._scorers.save(SAVE_S)
        self.view.committed += committed

    def stopped(self, *, spent: bool) -> Interrupted:
        """Return what a session raises that ends before its work, once that is saved."""
        view, resources = self.view, self._cfg.resources
        done = f"{view.before + view.committed} of {view.total} questions in {self._directory.uri}"
        limits = {"budget_seconds": resources.budget_seconds, "needed_seconds": needed_seconds(view)}
        account = view.account().to_dict()
        saved = self._saved_samples
        counts = {"committed": view.committed, "saved_samples": saved}
        self._events.write("stopped", spent=spent, account=account, **counts, **limits)
        if spent:
            return BudgetSpent(spent_words(view, resources.budget, done, saved))
        more = f", and from {saved} trajectories of other questions" if saved else ""
        return Interrupted(f"stopped with {done}; the same command goes on from there{more}")

    def close(self) -> None:
        """End the session's scorers, and its hold on the engines."""
        self._metrics.update(self.view, last=True)
        self._scorers.close()
        self._replica_set.detach()

    def summary(self) -> Summary:
        """Return what the session did."""
        summary = self.view.summary
        summary.account = self.view.account()
        summary.generation_seconds = summary.account.generation_seconds
        summary.session_tokens = sum(view.tokens for view in self.view.engines.values())
        summary.engine_deaths = self._replica_set.deaths
        return summary
