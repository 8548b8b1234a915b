"""The engine: holds one backend (vLLM, or the simulated one) and keeps it decoding without a pause.

Owns the threads that feed and step the backend, and the exchange: requests in, finished pieces out; what is in work is
pieces.py's. It decides neither what to draw next (scheduler.py) nor what an answer is worth, and knows nothing of Ray
(engine_actor.py). An engine may outlive a run: what an earlier one left is dropped when the next begins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from queue import SimpleQueue
from typing import Any

from rollout_ray.actors.backend import Backend, BackendInfo, Finished
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.engine.logs import Log, is_second_hand
from rollout_ray.actors.engine.out_of_memory import as_start_failure
from rollout_ray.actors.engine.work_units import ChunkTable, Waiting
from rollout_ray.core.errors import ConfigError, Refused
from rollout_ray.core.records import (
    ChunkKey,
    Completion,
    Cut,
    Generated,
    RolloutRequest,
    SampleSpec,
    sample_specs,
    sampling_seed,
)
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.telemetry.engine_stats import EngineStats, IdleClock

log = logging.getLogger(__name__)


def eighth(max_num_seqs: int) -> int:
    """Of a batch: what an engine is kept ahead by, and what is worth a hand-over."""
    return max(1, max_num_seqs // 8)


def num_to_submit(info: BackendInfo, held: int, waiting: int, short: bool) -> int:
    """How many more draws a backend is given that holds `held`, `waiting` of them not yet decoded: up to what it decodes
    at once and an eighth more, so that a freed place never waits for us, and no more than an eighth between two steps: the
    second would wait for it. One whose core is apart hears of freed places steps later, and of all at once where draws have
    one length: it is kept a batch ahead, and does not wait for what it is given. While it is `short` of KV cache it is
    kept an eighth ahead of what it does decode. The rest stays in the inbox."""
    few = eighth(info.max_num_seqs)
    ahead = info.max_num_seqs if info.core_apart and not short else few
    free = max(0, ahead - waiting if short else info.max_num_seqs + ahead - held)
    return free if info.core_apart else min(free, few)


@dataclass(frozen=True)
class Exchange:
    """What an engine tells of itself when it hands over: the pieces it finished.

    `returned` names pieces of which it gives draws back, and the first of them: the piece keeps those before it.
    `unfinished` draws are still with the engine; `tokens` counts the output tokens of these pieces; `steps` counts all
    decoding steps since the start, so that an engine that answers but no longer decodes is found out; `stats` counts
    since the exchange before this one, or since the run began.
    """

    chunks: tuple[ChunkKey, ...]
    returned: tuple[Cut, ...]
    unfinished: int
    tokens: int
    steps: int
    stats: EngineStats


class Engine:
    """One engine. `start` is called once, `begin` for each run, and then `exchange` again and again, one call at a time;
    between two runs also `update_weights`. `output` is the file that this process writes to."""

    def __init__(self, spec: LaunchSpec, output: Log | None = None) -> None:
        self._spec, self._log = spec, output
        self._name, self._policy, self._run_seed = spec.name, spec.run.policy, spec.run.config.sampling.seed
        self._samples: tuple[SampleSpec, ...] = ()
        self._backend: Backend | None = None
        self._task: tuple[Callable[[], None], Future[None]] | None = None
        self._reclaim = 0  # draws that are still to be given back
        self._returned: list[Cut] = []  # what is given back, and not handed over yet
        self._changed = threading.Condition()
        self._chunks = ChunkTable()
        self._unread: SimpleQueue[Sequence[Finished]] = SimpleQueue()
        self._steps = 0
        self._idle = IdleClock()
        self._told = EngineStats()  # what the driver knows of what was counted
        self._failure: BaseException | None = None

    def start(self) -> BackendInfo:
        """Loads the backend and starts its loop. Raises NoMemory where memory was short, else RuntimeError with the
        backend's own words."""
        try:
            backend = self._load()
        except Exception as error:
            cause = self._log.root_cause() if self._log else None
            text = f"{type(error).__name__}: {error}"
            raise as_start_failure(f"{text} ({cause})" if cause and cause not in text else text) from error
        self._backend = backend
        for work in (self._loop, self._read):
            threading.Thread(target=work, name=f"{self._name} {work.__name__}", daemon=True).start()
        return backend.info()

    def begin(self, run: ResolvedRun) -> None:
        """Takes up a run; whatever is left of an earlier one is dropped. Raises ConfigError where the backend cannot serve
        an arm, and what broke the engine, where it is broken."""
        backend = self._ready()
        backend.check()
        self.drop()
        self._in_loop(lambda: backend.begin(run))
        self._run_seed, self._samples = run.config.sampling.seed, sample_specs(run.arms)
        opening = {arm.name: backend.opening(arm) for arm in run.arms}
        self._chunks.openings = tuple(opening[spec.arm.name] for spec in self._samples)

    def drop(self) -> None:
        """Drops all that the present run still has here."""
        with self._changed:
            self._chunks.drop()
            self._reclaim = 0
            self._returned.clear()
            self._told = self._counted()
            self._changed.notify_all()

    def update_weights(self, policy: Policy) -> float:
        """Loads other weights of the same shape, and drops the present run; returns the seconds that it took. The engine is
        of no use where this raises."""
        backend = self._ready()
        backend.check()
        self.drop()
        began = time.monotonic()
        self._in_loop(lambda: backend.update_weights(policy.path))
        self._policy = policy
        return time.monotonic() - began

    def _in_loop(self, task: Callable[[], None]) -> None:
        """Runs `task` in the backend's thread once it has no request, and raises what it raises."""
        outcome: Future[None] = Future()
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._task = task, outcome
            self._changed.notify_all()
        outcome.result()

    def _load(self) -> Backend:
        if self._spec.run.config.engine.backend == "simulated":
            from rollout_ray.actors.simulated import SimulatedBackend

            return SimulatedBackend(self._spec)
        from rollout_ray.actors.vllm_backend.backend import VllmBackend

        return VllmBackend(self._spec)

    def exchange(
        self, requests: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int = 0
    ) -> tuple[Exchange, dict[int, list[Generated]]]:
        """Takes on `requests`, gives back up to `recalled` draws that are not begun yet, and hands over finished pieces,
        by lane.

        Returns at once where it gives something back; else once a piece is finished and `coalesce_s` have passed (a
        short pause gathers many pieces into one hand-over), at once when an eighth of the batch is to be refilled or
        the engine is idle, and after `wait_s` in any case. Raises what broke the engine, once it is broken.
        """
        for request in requests:
            self._accept(request)
        began = time.monotonic()
        backend, chunks = self._ready(), self._chunks
        if self._failure is None:  # else it is what is raised below: it says more than that a process is gone
            backend.check()
        many = eighth(backend.info().max_num_seqs)
        with self._changed:
            if not self._returned:  # else the driver does not know yet what it is given back
                held = chunks.unfinished
                self._returned += chunks.return_samples(reclaim)
                self._reclaim = reclaim - (held - chunks.unfinished)
            while self._failure is None and chunks.unfinished and not self._returned and chunks.finished < many:
                left = began + (coalesce_s if chunks.complete else wait_s) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._failure is not None:
                raise self._failure
            done, unfinished, steps = chunks.hand_over(), chunks.unfinished, self._steps
            returned, self._returned = tuple(self._returned), []
            counted = self._counted()
            stats, self._told = counted.since(self._told), counted
        by_scorer: dict[int, list[Generated]] = defaultdict(list)
        for generated in done:
            by_scorer[generated.request.scorer_index].append(generated)
        told = Exchange(
            chunks=tuple((g.request.ordinal, g.request.first) for g in done),
            returned=returned,
            unfinished=unfinished,
            tokens=sum(c.num_tokens for g in done for c in g.completions),
            steps=steps,
            stats=stats,
        )
        return told, by_scorer

    def _counted(self) -> EngineStats:
        """All that was counted since the start."""
        if self._backend is None:
            return EngineStats()
        now = self._backend.stats()
        return replace(
            now, waiting=now.waiting + self._chunks.waiting, steps=self._steps, idle_seconds=self._idle.seconds()
        )

    def _ready(self) -> Backend:
        if self._backend is None:
            raise RuntimeError(f"engine {self._name} was given work before it was started")
        return self._backend

    def _accept(self, request: RolloutRequest) -> None:
        """Tokenizes a request's prompts and queues its draws; a prompt that is refused is finished here."""
        backend = self._ready()
        prompts: dict[int, list[int]] = {}
        failed: dict[int, Completion] = {}
        known: dict[Any, list[int] | Refused] = {}
        for number in range(request.first, request.stop):
            arm = self._samples[number].arm
            if arm.prompt_variant not in known:
                try:
                    if request.question.fault:
                        raise Refused(request.question.fault)
                    known[arm.prompt_variant] = backend.encode(request.question.prompt, arm)
                except Refused as refused:
                    known[arm.prompt_variant] = refused
            tokens = known[arm.prompt_variant]
            if isinstance(tokens, Refused):
                failed[number] = Completion(number, "", 0, 0, "error", self._name, str(tokens), self._policy.version)
            else:
                prompts[number] = tokens
        with self._changed:
            self._chunks.add(request, prompts, failed)
            self._changed.notify_all()

    def _loop(self) -> None:
        backend = self._ready()
        info, stats = backend.info(), backend.stats()
        held: dict[str, None] = {}  # keys that the backend has, the last one given last, all of run number `current`
        current = 0
        try:
            while True:
                with self._changed:
                    while not (self._chunks.waiting or held or self._task):
                        self._idle.idle()
                        self._changed.wait()
                    self._idle.busy()
                    run = self._chunks.run
                    has = len(held) if run == current else 0
                    free = num_to_submit(info, has, stats.waiting, has > 0 and stats.short_of_memory)
                    new = self._chunks.take(free)
                    reclaim, self._reclaim = self._reclaim, 0
                if run != current:
                    backend.abort(list(held))
                    held.clear()
                    current = run
                # Of a core apart these are an earlier step's: what was taken back since is not waiting any more.
                self._take_back(backend, held, min(reclaim, stats.waiting, max(0, len(held) - stats.running)))
                if not held and not new and self._task:
                    self._run_task()
                held.update((spec.key, None) for spec in new if self._submit(backend, spec))
                finished = [one for one in backend.step() if one.key in held] if held else []
                self._steps += bool(held)
                if finished:
                    for one in finished:
                        del held[one.key]
                    self._unread.put(finished)
        except BaseException as error:
            log.exception("engine %s broke", self._name)
            self._break(error)

    def _take_back(self, backend: Backend, held: dict[str, None], count: int) -> None:
        """Gives back the last `count` draws of those that the backend holds: these wait there for a place."""
        unbegun = list(islice(reversed(held), count))
        if not unbegun:
            return
        backend.abort(unbegun)
        for key in unbegun:
            del held[key]
        with self._changed:
            self._returned += self._chunks.cut(unbegun)
            self._changed.notify_all()

    def _read(self) -> None:
        """Delivers what the backend finished, once it has its text. In a thread of its own: the next step does not wait."""
        backend = self._ready()
        try:
            while True:
                self._deliver(backend.read(self._unread.get()))
        except BaseException as error:
            log.exception("engine %s broke", self._name)
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Leaves the engine of no use: whoever waits for it is told why."""
        cause = self._log.root_cause() if self._log and is_second_hand(str(error)) else None
        if cause:
            error = RuntimeError(cause)
        with self._changed:
            self._failure = self._failure or error
            task, self._task = self._task, None
            if task:
                task[1].set_exception(error)
            self._changed.notify_all()

    def _run_task(self) -> None:
        """Runs what another thread waits for. A ConfigError leaves the backend as it was; any other breaks the loop."""
        assert self._task is not None
        task, outcome = self._task
        try:
            task()
        except ConfigError as error:
            self._task = None
            outcome.set_exception(error)
            return
        self._task = None
        outcome.set_result(None)

    def _submit(self, backend: Backend, waiting: Waiting) -> bool:
        """Whether the backend took the request; a refusal finishes it."""
        spec = self._samples[waiting.number]
        seed = sampling_seed(self._run_seed, waiting.question_id, spec.arm.name, spec.sample)
        try:
            backend.add(waiting.key, waiting.prompt, spec, seed)
        except Refused as refused:
            self._deliver([Finished(waiting.key, "", 0, "error", str(refused))])
            return False
        return True

    def _deliver(self, finished: Sequence[Finished]) -> None:
        with self._changed:
            for one in finished:
                self._chunks.finish(one, self._name, self._policy.version)
            self._changed.notify_all()
