"""The engine: hold one backend, and keep it decoding without a pause.

Its threads feed and step the backend. `exchange` takes requests and hands over finished chunks.
It knows neither the scheduler nor Ray. An engine may outlive a run: `begin` drops what an earlier run left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from rollout_ray.actors.backend import Backend, BackendInfo, Finished, encode_prompts
from rollout_ray.actors.engine.exchange import Exchange, by_arm, by_scorer
from rollout_ray.actors.engine.launch import LaunchSpec, load_backend
from rollout_ray.actors.engine.logs import Log, is_second_hand
from rollout_ray.actors.engine.out_of_memory import as_start_failure
from rollout_ray.actors.engine.supply import batch_share, num_to_submit
from rollout_ray.actors.engine.work_units import ChunkTable, Waiting
from rollout_ray.core.errors import ConfigError, Refused
from rollout_ray.core.records import Completion, Cut, Generated, RolloutRequest, SampleSpec, sample_specs, sampling_seed
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.prompt_report import PromptReport
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.telemetry.engine_stats import EngineStats, IdleClock

log = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """One engine.

    The caller calls `start` once, `begin` for each run, and then `exchange` again and again, one call at a time. Between
    two runs it may call `update_weights`.
    """

    def __init__(self, spec: LaunchSpec, output: Log | None = None) -> None:
        self._spec, self._log = spec, output
        self._name, self._policy = spec.name, spec.run.policy
        self._run_seed = spec.run.config.sampling.seed
        self._samples: tuple[SampleSpec, ...] = ()
        self._backend: Backend | None = None
        self._task: tuple[Callable[[], Any], Future[Any]] | None = None
        self._reclaim = 0  # samples that are still to be returned
        self._returned: list[Cut] = []  # returned, and not reported yet
        self._changed = threading.Condition()
        self._chunks = ChunkTable()
        self._unread: SimpleQueue[Sequence[Finished]] = SimpleQueue()
        self._steps = 0
        self._idle = IdleClock()
        self._told = EngineStats()  # counts that the driver has
        self._failure: BaseException | None = None

    def start(self) -> BackendInfo:
        """Load the backend and start its loop. Raises NoMemory if memory was short, else RuntimeError with its words.

        A ConfigError says that no engine could start with this config.
        """
        try:
            backend = load_backend(self._spec)
        except ConfigError:
            raise
        except Exception as error:
            cause = self._log.root_cause() if self._log else None
            text = f"{type(error).__name__}: {error}"
            raise as_start_failure(f"{text} ({cause})" if cause and cause not in text else text) from error
        self._backend = backend
        for work in (self._loop, self._read):
            threading.Thread(target=work, name=f"{self._name} {work.__name__}", daemon=True).start()
        return backend.info()

    def begin(self, run: ResolvedRun) -> PromptReport:
        """Take up a run, drop what is left of an earlier one, and say how the run words its prompts.

        Raises:
            ConfigError: The backend cannot serve an arm, or the prompts seem to be rendered already. A broken engine raises
                what broke it.
        """
        backend = self._ready()
        backend.check()
        self.drop()
        report = self._in_loop(lambda: backend.begin(run))
        self._run_seed, self._samples = run.config.sampling.seed, sample_specs(run.arms)
        opening = {arm.name: backend.opening(arm) for arm in run.arms}
        self._chunks.tokens = run.config.output.tokens
        self._chunks.openings = tuple(opening[spec.arm.name] for spec in self._samples)
        return report

    def drop(self) -> dict[int, list[Generated]]:
        """Drop everything of the present run. Return what finished by scorer index, also of chunks in work."""
        with self._changed:
            finished = self._chunks.drop()
            self._reclaim = 0
            self._returned.clear()
            self._told = self._counted()
            self._changed.notify_all()
        return by_scorer(finished)

    def update_weights(self, policy: Policy) -> float:
        """Load other weights of the same shape, drop the present run, and return the seconds that it took.

        An error leaves the engine broken.
        """
        backend = self._ready()
        backend.check()
        self.drop()
        began = time.monotonic()
        self._in_loop(lambda: backend.update_weights(policy.path))
        self._policy = policy
        return time.monotonic() - began

    def _in_loop(self, task: Callable[[], T]) -> T:
        """Run a task in the backend's thread once it has no request. Returns and raises what the task does."""
        outcome: Future[T] = Future()
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._task = task, outcome
            self._changed.notify_all()
        return outcome.result()

    def exchange(
        self, requests: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, reclaim: int = 0
    ) -> tuple[Exchange, dict[int, list[Generated]]]:
        """Take on requests, and hand over finished chunks by scorer index.

        It returns at once if it returns samples, if an eighth of the batch is free, or if the engine is idle.

        Args:
            wait_s: Longest time to wait for a finished chunk.
            coalesce_s: Time to wait for more chunks once one is finished. It gathers many into one hand-over.
            reclaim: How many samples to return that are not begun yet.

        A broken engine raises what broke it.
        """
        for request in requests:
            self._accept(request)
        began = time.monotonic()
        backend, chunks = self._ready(), self._chunks
        if self._failure is None:  # a failure is raised below, and says more than that a process ended
            backend.check()
        many = batch_share(backend.info().max_num_seqs)
        with self._changed:
            if not self._returned:  # the driver counts returned samples only once they are reported
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
            done, partial = chunks.hand_over(), chunks.partial()
            unfinished, steps = chunks.unfinished, self._steps
            returned, self._returned = tuple(self._returned), []
            counted = self._counted()
            stats, self._told = counted.since(self._told), counted
        told = Exchange.of(done, returned, unfinished, steps, stats)
        told = replace(told, arms=by_arm(done, self._samples), partial_arms=by_arm(partial, self._samples))
        return told, by_scorer(done)

    def _counted(self) -> EngineStats:
        """Return the counts since the start."""
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
        """Tokenize the prompts of a request and queue its samples. A refused prompt is finished here."""
        backend = self._ready()
        prompts: dict[int, list[int]] = {}
        failed: dict[int, Completion] = {}
        arms = [spec.arm for spec in self._samples[request.first : request.stop]]
        for number, tokens in enumerate(encode_prompts(backend, request.question, arms), request.first):
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
        held: dict[str, None] = {}  # keys with the backend, in order, all of run number `current`
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
                # A core in its own process reports an earlier step, before samples were returned.
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
        """Return the last `count` samples that the backend holds. They wait there to be decoded."""
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
        """Deliver finished requests with their texts, in a thread of its own, so that the next step does not wait."""
        backend = self._ready()
        try:
            while True:
                self._deliver(backend.read(self._unread.get()))
        except BaseException as error:
            log.exception("engine %s broke", self._name)
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Mark the engine as broken, and tell everybody who waits for it why."""
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
        """Run the task that another thread waits for. A ConfigError leaves the backend as it was."""
        assert self._task is not None
        task, outcome = self._task
        try:
            result = task()
        except ConfigError as error:
            self._task = None
            outcome.set_exception(error)
            return
        self._task = None
        outcome.set_result(result)

    def _submit(self, backend: Backend, waiting: Waiting) -> bool:
        """Give the backend a request. Returns False if it refuses, which finishes the request."""
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
