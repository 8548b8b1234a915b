"""The driver's loop: keeps engines supplied and scorers fed until every question is committed.

The only module that talks to Ray's scheduler. It holds references, receipts and counters, never a generation.
Invariant: a payload is kept until every question in it is committed, so that a scorer can be replaced; a payload that
is lost with its engine is drawn again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.backend import BackendInfo
from actors.engine import EngineActor, Exchange
from actors.placement import choose_placement, live_nodes, release, reserve
from actors.scorer import Receipt, ScorerActor
from rollout_ray.config import RunConfig
from rollout_ray.errors import EngineError, IncompleteError, Interrupted, LedgerError, RolloutError
from rollout_ray.ledger import EventLog, RunDirectory
from rollout_ray.models import cluster_address
from rollout_ray.progress import EngineView, Progress, RunView
from rollout_ray.questions import QuestionSet
from rollout_ray.records import Arm, Completion, Generated, RolloutRequest
from rollout_ray.report import Summary
from rollout_ray.scheduler import Scheduler
from rollout_ray.scoring import load_reward

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # an engine answers at least this often
COALESCE_S = 0.1  # finished pieces gather this long before they are handed over
ENGINES_PER_SCORER = 4
# Variables of the driver's environment that an engine on another node needs too; none of them is a secret.
FORWARDED = ("NCCL_", "NVSHMEM_", "TORCH_SYMM_MEM_", "VLLM_", "HF_HOME", "HF_HUB_")


@dataclass
class _Engine:
    """One engine slot. `call` is its start or exchange in flight, None while it is idle; `deaths` counts those since a
    piece was last delivered."""

    name: str
    actor: Any
    call: Any
    room: Any
    started: bool = False
    deaths: int = 0


@dataclass
class _Scorer:
    """One scoring actor. `payloads` maps a payload to its requests that are not committed yet; `calls` maps a call in
    flight to its payload (None for a flush)."""

    lane: int
    actor: Any
    payloads: dict[Any, list[RolloutRequest]] = field(default_factory=dict)
    calls: dict[Any, Any] = field(default_factory=dict)
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
) -> Summary:
    """Draws, scores and commits every question that is not in `done`; returns what this session did.

    Raises PlacementError, EngineError, LedgerError, and Interrupted on Ctrl-C.
    """
    load_reward(cfg.scoring.reward)
    with _ray(cfg):
        session = _Session(cfg, arms, questions, done, run, events)
        try:
            with progress:
                session.run(progress)
        except KeyboardInterrupt:
            session.save()
            raise Interrupted(
                f"stopped with {len(done) + session.view.committed} of {len(questions)} questions in {run.uri}; the same "
                "command goes on from there"
            ) from None
        finally:
            session.close()
        return session.summary()


@contextmanager
def _ray(cfg: RunConfig) -> Iterator[None]:
    """Connects to the cluster that is named, else starts a local Ray and ends it afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        yield
        return
    address = cluster_address(cfg)
    if address:
        _check_reachable(address)
        if _has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise RolloutError(
            f"the Ray cluster at {address} takes no client: {error}. Check that the head's token is in ~/.ray/auth_token"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would end the process without saving
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try a wrong address for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RolloutError(f"no Ray cluster answers at {address}: {error}; check --ray_address") from error


def _has_token() -> bool:
    default = os.path.expanduser("~/.ray/auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.path.exists(os.environ.get("RAY_AUTH_TOKEN_PATH", default)))


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
    ) -> None:
        self._cfg, self._arms, self._run, self._events = cfg, tuple(arms), run, events
        self._placement = choose_placement(live_nodes(ray.nodes()), cfg)
        log.info(self._placement.note)
        events.write("placed", note=self._placement.note)
        replicas = self._placement.replicas
        lanes = cfg.resources.scorers or max(1, replicas // ENGINES_PER_SCORER)
        draws = sum(arm.samples for arm in arms)
        self._missing = len(questions) - len(done)
        self._scheduler = Scheduler(questions.questions(done), self._missing, draws, lanes=lanes, expected_engines=replicas)
        self.view = RunView(
            total=len(questions), before=len(done), total_draws=self._missing * draws,
            engines={f"engine-{i}": EngineView() for i in range(replicas)},
        )  # fmt: skip
        self._last_generated = 0.0
        self._deaths = 0
        self._engines = {name: self._start_engine(name, reserve(self._placement)) for name in self.view.engines}
        self._scorers = [self._start_scorer(lane) for lane in range(lanes)]

    # Starting

    def _start_engine(self, name: str, room: Any, deaths: int = 0) -> _Engine:
        options: dict[str, Any] = {"num_cpus": self._placement.cpus, "num_gpus": self._placement.gpus}
        if room is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=0)
        forwarded = {key: value for key, value in os.environ.items() if key.startswith(FORWARDED)}
        actor = (
            ray.remote(EngineActor)
            .options(**options)
            .remote(name, self._cfg, self._arms, self._placement.gpus, self._placement.threads, forwarded)
        )
        self.view.engines[name].state = "starting"
        return _Engine(name, actor, actor.start.remote(), room, deaths=deaths)

    def _start_scorer(self, lane: int) -> _Scorer:
        actor = ray.remote(ScorerActor).options(num_cpus=0).remote(lane, self._run, self._cfg, self._arms)
        return _Scorer(lane, actor)

    # The loop

    def run(self, progress: Progress) -> None:
        """Returns when every missing question is committed."""
        while self.view.committed < self._missing:
            self._take_answers()
            self._supply_idle_engines()
            self._flush_scorers()
            progress.update(self.view)

    def _take_answers(self) -> None:
        calls = {engine.call: engine for engine in self._engines.values() if engine.call is not None}
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

    def _engine_answered(self, engine: _Engine) -> None:
        call, engine.call = engine.call, None
        try:
            answer = ray.get(call)
        except RayActorError as error:
            self._engine_died(engine, error)
            return
        except RayTaskError as error:
            self._engine_died(engine, error.cause if isinstance(error.cause, Exception) else error)
            return
        if isinstance(answer, BackendInfo):
            engine.started = True
            self._scheduler.add_engine(engine.name, answer.max_num_seqs)
            self._events.write("engine_started", engine=engine.name, **vars(answer))
            if self.view.generation_began is None:
                self.view.generation_began = time.monotonic()
        else:
            self._deliver(engine, answer)
        self._exchange(engine, unfinished=getattr(answer, "unfinished", 0))

    def _exchange(self, engine: _Engine, unfinished: int) -> None:
        """Hands the engine what it has credit for; an engine with nothing to do is left alone."""
        work = self._scheduler.assign(engine.name, unfinished)
        unfinished += sum(map(len, work))
        view = self.view.engines[engine.name]
        view.unfinished, view.state = unfinished, "running" if unfinished else "idle"
        if unfinished:
            engine.call = engine.actor.exchange.remote(work, HEARTBEAT_S, COALESCE_S)

    def _supply_idle_engines(self) -> None:
        if self._scheduler.pending:
            for engine in self._engines.values():
                if engine.started and engine.call is None:
                    self._exchange(engine, unfinished=0)

    def _deliver(self, engine: _Engine, exchange: Exchange) -> None:
        """Passes an engine's payloads on to the scorers of their lanes."""
        delivered = self._scheduler.complete(engine.name, exchange.pieces)
        draws = sum(map(len, delivered))
        view = self.view.engines[engine.name]
        view.draws += draws
        view.tokens += exchange.tokens
        self.view.generated_draws += draws
        if delivered:
            self._last_generated = time.monotonic()
            engine.deaths = 0
        for lane, payload in exchange.payloads.items():
            self._score(self._scorers[lane], payload, [r for r in delivered if r.lane == lane])

    def _score(self, scorer: _Scorer, payload: Any, requests: list[RolloutRequest]) -> None:
        scorer.payloads[payload] = requests
        scorer.calls[scorer.actor.score.remote(payload, frozenset(r.ordinal for r in requests))] = payload

    def _scorer_answered(self, scorer: _Scorer, call: Any) -> None:
        payload = scorer.calls.pop(call, None)
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
            self.view.generated_draws -= sum(map(len, lost))
            self._scheduler.put_back(lost)
            return
        scorer.waiting, scorer.last_receipt = receipt.waiting, time.monotonic()
        if receipt.committed:
            self._committed(scorer, frozenset(receipt.committed))
            self.view.summary.combine(receipt.summary)

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
                scorer.calls[scorer.actor.flush.remote()] = None

    # Deaths

    def _engine_died(self, engine: _Engine, error: Exception) -> None:
        self._deaths += 1
        self.view.engines[engine.name].state = "dead"
        self._events.write("engine_died", engine=engine.name, error=str(error))
        if not engine.started and not any(e.started for e in self._engines.values()):
            raise EngineError(f"{engine.name} could not start: {error}") from error
        if engine.started:
            for request in self._scheduler.remove_engine(engine.name):
                self._set_aside(request, str(error))
        if engine.deaths < self._cfg.resources.max_engine_deaths:
            log.warning("%s died and is started again: %s", engine.name, error)
            ray.kill(engine.actor)
            self._engines[engine.name] = self._start_engine(engine.name, engine.room, engine.deaths + 1)
            return
        log.warning("%s died once too often and is retired: %s", engine.name, error)
        del self._engines[engine.name]
        release(engine.room)
        self._scheduler.expected_engines -= 1
        if not self._engines:
            raise EngineError(f"every engine died; the last one, {engine.name}: {error}") from error

    def _set_aside(self, request: RolloutRequest, reason: str) -> None:
        """A piece that was in flight at too many deaths becomes error trajectories."""
        text = f"in flight at several engine deaths, the last: {reason}"
        completions = tuple(
            Completion(draw, "", 0, 0, "error", "none", text) for draw in range(request.first, request.stop)
        )
        self.view.generated_draws += len(request)
        payload = ray.put([Generated(request, completions)])
        self._score(self._scorers[request.lane], payload, [request])

    def _scorer_died(self, scorer: _Scorer, error: Exception) -> None:
        """A new scorer gets every payload that holds an uncommitted question."""
        if scorer is not self._scorers[scorer.lane]:
            return  # a second call of a scorer that was replaced already
        log.warning("scorer-%d died and is started again: %s", scorer.lane, error)
        self._events.write("scorer_died", lane=scorer.lane, error=str(error))
        ray.kill(scorer.actor)
        replacement = self._start_scorer(scorer.lane)
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

    def close(self) -> None:
        """Ends every actor of the session and gives its reservations back: the cluster may outlive it."""
        for scorer in self._scorers:
            ray.kill(scorer.actor)
        for engine in self._engines.values():
            ray.kill(engine.actor)
            release(engine.room)

    def summary(self) -> Summary:
        summary = self.view.summary
        if self.view.generation_began is not None:
            summary.generation_seconds = max(0.0, self._last_generated - self.view.generation_began)
        summary.session_tokens = sum(view.tokens for view in self.view.engines.values())
        summary.engine_deaths = self._deaths
        return summary


def _as_rollout_error(error: RayTaskError) -> RolloutError:
    """What a scorer raised, by its own name where that is one of ours; an OSError is the storage's."""
    cause: Any = error.cause
    if isinstance(cause, RolloutError):
        return cause
    if isinstance(cause, OSError):
        return LedgerError(f"a part cannot be written: {cause}")
    return RolloutError(f"a scorer failed: {cause}")
