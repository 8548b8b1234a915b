"""Move work between the scheduler, the engines and the scorers, and take up what each of them answers.

It handles references, receipts and counters, and reads no generation. Invariant: samples of a payload that is lost with
its node go back to the queue.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError, RayTaskError

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.exchange import Exchange
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Completion, Generated, RolloutRequest
from rollout_ray.driver.failures import cause_of, reason_of
from rollout_ray.driver.handle import Calls
from rollout_ray.driver.health import HEARTBEAT_S
from rollout_ray.driver.replica import Replica, ReplicaState
from rollout_ray.driver.replica_set import ReplicaSet
from rollout_ray.driver.scheduler import Scheduler
from rollout_ray.driver.scorer_pool import Scorer, ScorerPool
from rollout_ray.models.prompt_report import PromptReport
from rollout_ray.storage.event_log import EventLog
from rollout_ray.telemetry.early_warnings import EarlyWarnings
from rollout_ray.telemetry.engine_stats import ArmCount
from rollout_ray.telemetry.run_view import RunView

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Dispatch:
    """Who holds what in one session. `calls` waits for engines and scorers alike."""

    calls: Calls
    scheduler: Scheduler
    replica_set: ReplicaSet
    scorers: ScorerPool
    view: RunView
    events: EventLog
    _early: EarlyWarnings = field(default_factory=EarlyWarnings)
    _prompts_shown: bool = False

    def take_answers(self) -> bool:
        """Take up the answers of engines and scorers, within a heartbeat. Return False if nobody owes one."""
        engines, scorers = self.replica_set.calls(), self.scorers.calls()
        waiting = [*engines, *scorers]
        if not waiting:
            return False
        for call in self.calls.wait(waiting, HEARTBEAT_S):
            if call in engines:
                self._engine_answered(engines[call])
            else:
                self.scorer_answered(scorers[call], call)
        return True

    def supply_idle_engines(self) -> None:
        """Hand work to engines that have no call in flight."""
        if self.scheduler.pending:
            for replica in self.replica_set.replicas.values():
                if replica.serves and not replica.call:
                    self._exchange(replica, unfinished=0)

    # Engines

    def _engine_answered(self, replica: Replica) -> None:
        call, payloads = replica.take_call()
        try:
            answer = self.calls.result(call)
        except RayError as error:  # an exception of the engine's, or its process or node is gone
            if isinstance(error, RayTaskError):
                for payload in payloads:  # each of them is that error, and Ray logs those that nobody reads
                    with suppress(RayError):
                        self.calls.result(payload)
            cause = cause_of(error)
            if isinstance(cause, ConfigError):  # the engine is sound, and would say the same again
                raise cause from error
            self.engine_died(replica, cause)
            return
        if isinstance(answer, BackendInfo) and replica.is_pending:
            self.replica_set.loaded(replica, answer)
            return
        if isinstance(answer, BackendInfo):
            self._begun(replica, answer)
        else:
            self.replica_set.answered(replica, answer)
            self._deliver(replica, answer, payloads)
        self._exchange(replica, unfinished=getattr(answer, "unfinished", 0))
        if not replica.call:
            self.events.write("engine_idle", engine=replica.name, pending=self.scheduler.pending)

    def _begun(self, replica: Replica, info: BackendInfo) -> None:
        self.scheduler.add_engine(replica.name, info.max_num_seqs)
        most = 2 * len(self.replica_set.replicas) * info.max_num_seqs
        self.scorers.most_unscored = max(self.scorers.most_unscored, most)
        self.view.engines[replica.name].places = info.max_num_seqs
        self.replica_set.begun(replica, info)
        if info.prompts is not None and not self._prompts_shown:
            self._prompts_shown = True
            self._show_prompts(info.prompts)
        if self.view.generation_began is None:
            self.view.generation_began = time.monotonic()

    def _show_prompts(self, report: PromptReport) -> None:
        """Say how the run words its prompts, once a session. All engines say the same."""
        for note in report.notes:
            log.info(note)
        for warning in report.warnings:
            log.warning(warning)
        first = [{"arms": arms, "text": text} for arms, text in report.first]
        self.events.write("prompts", notes=report.notes, warnings=report.warnings, first=first)

    def _exchange(self, replica: Replica, unfinished: int) -> None:
        """Hand an engine what it has credit for, and ask it to return what it holds beyond its share.

        While the scorers are behind, engines get nothing new: that bounds the queue in front of the scorers. A draining
        engine returns everything that it has not begun.
        """
        work: list[RolloutRequest] = []
        draining = replica.state is ReplicaState.DRAINING
        reclaim, soon = (unfinished if draining else 0), False
        if not (draining or self.scorers.behind):
            work = self.scheduler.assign(replica.name, unfinished, time.monotonic())
            reclaim, soon = self.scheduler.to_reclaim(replica.name), self.scheduler.asks_soon(replica.name)
        self.replica_set.exchange(replica, work, unfinished + sum(map(len, work)), reclaim, soon=soon)

    def _deliver(self, replica: Replica, exchange: Exchange, payloads: Sequence[Any]) -> None:
        """Put back the samples that an engine returns, and pass what it finished on to the scorers."""
        if returned_samples := self.scheduler.return_samples(replica.name, exchange.returned):
            self.events.write("given_back", engine=replica.name, draws=returned_samples)
        delivered = self.scheduler.complete(replica.name, exchange.chunks)
        samples = sum(map(len, delivered))
        view = self.view.engines[replica.name]
        view.samples += samples
        view.tokens += exchange.tokens
        view.record_stats(exchange.stats)
        view.partial_arms = exchange.partial_arms
        self.view.deliver(samples, exchange.arms)
        if delivered:
            self.view.last_generated = time.monotonic()
        for scorer_index, payload in enumerate(payloads):
            if requests := [request for request in delivered if request.scorer_index == scorer_index]:
                replica.payloads.add(payload)
                self.scorers.score(scorer_index, payload, requests)

    def take_finished(self, timeout_s: float) -> None:
        """Have the engines drop the run, and pass on what they have finished, also of chunks in work.

        An engine that does not answer in time delivers nothing more. Its samples are drawn again.
        """
        serving = [replica for replica in self.replica_set.replicas.values() if replica.serves]
        exchanges = [(replica, replica.take_call()) for replica in serving if replica.call]
        drops = [(replica, replica.engine.drop(self.scorers.count)) for replica in serving]
        calls = [call for _, (call, _) in exchanges] + [call for _, (call, *_) in drops]
        ended = self.calls.wait(calls, timeout_s, len(calls))
        for replica, (call, payloads) in exchanges:
            if (exchange := self._last_answer(replica, call, ended)) is not None:
                self._deliver(replica, exchange, payloads)
        for replica, (call, *payloads) in drops:
            for scorer_index in self._last_answer(replica, call, ended) or ():
                held = [r for r in self.scheduler.held(replica.name) if r.scorer_index == scorer_index]
                self.scorers.score(scorer_index, payloads[scorer_index], held)

    def _last_answer(self, replica: Replica, call: Any, ended: Sequence[Any]) -> Any:
        """Return what an engine answered at the end of a session. None, with a warning, if it did not."""
        try:
            if call not in ended:
                raise TimeoutError("no answer in time")
            return self.calls.result(call)
        except (RayError, TimeoutError) as error:
            log.warning("%s could not hand over what it had finished: %s", replica.name, reason_of(error))
            return None

    def engine_died(self, replica: Replica, error: Exception) -> None:
        """Return to the queue what a dead engine held; the replica set decides about another engine."""
        if replica.serves:
            for request in self.scheduler.remove_engine(replica.name):
                self._quarantine(request, reason_of(error))
        self.replica_set.died(replica, error)

    def _quarantine(self, request: RolloutRequest, reason: str) -> None:
        """Turn a chunk that was in flight at too many deaths into error trajectories."""
        text = f"in flight at several engine deaths, the last: {reason}"
        version = self.replica_set.policy.version
        completions = tuple(
            Completion(number, "", 0, 0, "error", "none", text, version) for number in range(request.first, request.stop)
        )
        errors = Counter(self.view.arm_names[request.first : request.stop])
        self.view.deliver(len(request), {name: ArmCount(count) for name, count in errors.items()})
        self.scorers.score(request.scorer_index, self.calls.put([Generated(request, completions)]), [request])

    # Scorers

    def scorer_answered(self, scorer: Scorer, call: Any) -> None:
        """Count what a scorer committed, and put back what it could not fetch."""
        receipt, lost = self.scorers.answered(scorer, call)
        if lost:
            self.view.lose(lost)
            self.scheduler.put_back(lost)
        if receipt and receipt.committed:
            self.view.committed += len(receipt.committed)
            self.view.summary.combine(receipt.summary)
            for text in self._early.news(self.view.summary):
                log.warning(text)
                self.events.write("early_warning", text=text)
