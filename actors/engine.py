"""The engine actor: holds one backend (vLLM, or the simulated one) and keeps it decoding without a pause.

Owns the loop that feeds and steps the backend, and the exchange with the driver: requests in, finished pieces out. The
generations themselves go into Ray's object store for the scoring actors; the driver gets references and counts. It
decides neither what to draw next (scheduler.py) nor what an answer is worth.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from actors.backend import Backend, BackendInfo, Finished, Refused
from actors.logs import redirect_output, root_cause
from actors.memory import as_start_failure
from rollout_ray.config import RunConfig
from rollout_ray.normal_form import encodable
from rollout_ray.records import Arm, Completion, Generated, RolloutRequest, draws_of, sampling_seed
from rollout_ray.scheduler import Cut, PieceKey

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger(__name__)


def most_held(max_num_seqs: int) -> int:
    """Draws that a backend is given at most: what it decodes at once, and an eighth more, so that a freed place never
    waits for us. The rest stays in the inbox, from where it can be given back."""
    return max_num_seqs + max(1, max_num_seqs // 8)


@dataclass(frozen=True)
class Exchange:
    """What an engine hands over: the pieces it finished, and per lane a reference to their list[Generated].

    `returned` names pieces of which it gives draws back, and the first of them: the piece keeps those before it.
    `unfinished` draws are still with the engine; `tokens` counts the output tokens of these pieces; `steps` counts all
    decoding steps since the start, so that an engine that answers but no longer decodes is found out.
    """

    pieces: tuple[PieceKey, ...]
    payloads: dict[int, ObjectRef[list[Generated]]]
    returned: tuple[Cut, ...]
    unfinished: int
    tokens: int
    steps: int


@dataclass
class _Open:
    """A piece in work: its completions by draw, and how many are still to come."""

    request: RolloutRequest
    completions: dict[int, Completion] = field(default_factory=dict)


class EngineActor:
    """One engine. The driver calls `start` once and then `exchange` again and again, one call at a time."""

    def __init__(
        self,
        name: str,
        config: RunConfig,
        arms: Sequence[Arm],
        gpus: int,
        threads: int,
        environment: Mapping[str, str],
        log_file: str | None = None,
    ) -> None:
        os.environ.update(environment)
        self._log_file = log_file if log_file and redirect_output(log_file) else None
        self._name, self._config, self._gpus, self._threads = name, config, gpus, threads
        self._draws = draws_of(arms)
        self._backend: Backend | None = None
        self._changed = threading.Condition()
        self._inbox: deque[tuple[str, list[int], int, str]] = deque()  # key, prompt tokens, draw, question id
        self._open: dict[PieceKey, _Open] = {}
        self._prompt_lengths: dict[str, int] = {}
        self._done: list[Generated] = []
        self._unfinished = 0
        self._finished_since = 0  # draws finished since the last exchange
        self._steps = 0
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        """What Ray's dashboard and logs call it."""
        return self._name

    def start(self) -> BackendInfo:
        """Loads the backend and starts its loop. Raises NoMemory where memory was short, else RuntimeError with the
        backend's own words."""
        import ray

        try:
            backend = self._load()
        except Exception as error:
            cause = root_cause(self._log_file) if self._log_file else None
            text = f"{type(error).__name__}: {error}"
            raise as_start_failure(f"{text} ({cause})" if cause and cause not in text else text) from error
        self._backend = backend
        threading.Thread(target=self._loop, name=f"{self._name} loop", daemon=True).start()
        return replace(backend.info(), node=ray.get_runtime_context().get_node_id())

    def _load(self) -> Backend:
        if self._config.engine.backend == "simulated":
            from actors.simulated import SimulatedBackend

            return SimulatedBackend(self._config, self._name)
        from actors.vllm_backend import VllmBackend

        return VllmBackend(self._config, gpus=self._gpus, threads=self._threads)

    def exchange(self, requests: Sequence[RolloutRequest], wait_s: float, coalesce_s: float, recalled: int = 0) -> Exchange:
        """Takes on `requests`, gives back up to `recalled` draws that the backend does not hold yet, and hands over
        finished pieces.

        Returns at once where it gives something back; else once a piece is finished and `coalesce_s` have passed (a
        short pause gathers many pieces into one hand-over), at once when an eighth of the batch is to be refilled or
        the engine is idle, and after `wait_s` in any case. Raises what broke the engine, once it is broken.
        """
        import ray

        for request in requests:
            self._accept(request)
        returned = self._give_back(recalled)
        began = time.monotonic()
        backend = self._ready()
        backend.check()
        many = max(1, backend.info().max_num_seqs // 8)
        with self._changed:
            while self._failure is None and self._unfinished and not returned and self._finished_since < many:
                left = began + (coalesce_s if self._done else wait_s) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._failure is not None:
                raise self._failure
            done, self._done, self._finished_since = self._done, [], 0
            unfinished, steps = self._unfinished, self._steps
        lanes: dict[int, list[Generated]] = defaultdict(list)
        for generated in done:
            lanes[generated.request.lane].append(generated)
        return Exchange(
            pieces=tuple((g.request.ordinal, g.request.first) for g in done),
            payloads={lane: ray.put(batch) for lane, batch in lanes.items()},
            returned=returned,
            unfinished=unfinished,
            tokens=sum(c.num_tokens for g in done for c in g.completions),
            steps=steps,
        )

    def stop(self) -> None:
        """Ends the backend's own processes; the actor is of no use afterwards."""
        if self._backend:
            self._backend.close()

    def _ready(self) -> Backend:
        if self._backend is None:
            raise RuntimeError(f"engine {self._name} was given work before it was started")
        return self._backend

    def _accept(self, request: RolloutRequest) -> None:
        """Tokenizes a request's prompts and queues its draws; a prompt that is refused is finished here."""
        backend = self._ready()
        piece = (request.ordinal, request.first)
        opened = _Open(request)
        queued: list[tuple[str, list[int], int, str]] = []
        prompts: dict[str | None, list[int] | Refused] = {}
        for number in range(request.first, request.stop):
            system_prompt = self._draws[number].arm.system_prompt
            if system_prompt not in prompts:
                try:
                    if request.question.fault:
                        raise Refused(request.question.fault)
                    prompts[system_prompt] = backend.encode(request.question.prompt, system_prompt)
                except Refused as refused:
                    prompts[system_prompt] = refused
            tokens = prompts[system_prompt]
            if isinstance(tokens, Refused):
                opened.completions[number] = self._failed(number, 0, str(tokens))
            else:
                queued.append((f"{piece[0]}.{piece[1]}.{number}", tokens, number, request.question.question_id))
        with self._changed:
            self._open[piece] = opened
            self._unfinished += len(request) - len(opened.completions)
            self._inbox.extend(queued)
            self._close_if_complete(piece)
            self._changed.notify_all()

    def _give_back(self, wanted: int) -> tuple[Cut, ...]:
        """Takes the last draws out of the inbox again, and with them what stands behind them in their pieces."""
        cuts: dict[PieceKey, int] = {}
        with self._changed:
            for _ in range(min(wanted, len(self._inbox))):
                ordinal, first, number = map(int, self._inbox.pop()[0].split("."))
                cuts[ordinal, first] = number
                self._unfinished -= 1
            for piece, cut in cuts.items():
                opened = self._open[piece]
                if cut == opened.request.first:
                    del self._open[piece]
                    continue
                opened.request = replace(opened.request, stop=cut)
                opened.completions = {number: done for number, done in opened.completions.items() if number < cut}
                self._close_if_complete(piece)
        return tuple(cuts.items())

    def _loop(self) -> None:
        backend = self._ready()
        most = most_held(backend.info().max_num_seqs)
        running = 0
        try:
            while True:
                with self._changed:
                    while not self._inbox and running == 0:
                        self._changed.wait()
                    new = [self._inbox.popleft() for _ in range(min(most - running, len(self._inbox)))]
                for entry in new:
                    running += self._submit(backend, *entry)
                finished = backend.step() if running else []
                self._steps += 1
                if finished:
                    running -= len(finished)
                    self._deliver(finished)
        except BaseException as error:
            log.exception("engine %s broke", self._name)
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _submit(self, backend: Backend, key: str, tokens: list[int], number: int, question_id: str) -> int:
        draw = self._draws[number]
        seed = sampling_seed(self._config.sampling.seed, question_id, draw.arm.name, draw.sample)
        self._prompt_lengths[key] = len(tokens)
        try:
            backend.add(key, tokens, draw, seed)
        except Refused as refused:
            self._deliver([Finished(key, "", 0, "error", str(refused))])
            return 0
        return 1

    def _deliver(self, finished: Sequence[Finished]) -> None:
        with self._changed:
            for one in finished:
                ordinal, first, number = map(int, one.key.split("."))
                self._open[ordinal, first].completions[number] = Completion(
                    draw=number,
                    full_text=encodable(one.text),
                    num_prompt_tokens=self._prompt_lengths.pop(one.key),
                    num_tokens=one.num_tokens,
                    finish_reason=one.finish_reason,
                    engine=self._name,
                    error=one.error,
                )
                self._unfinished -= 1
                self._finished_since += 1
                self._close_if_complete((ordinal, first))
            self._changed.notify_all()

    def _close_if_complete(self, piece: PieceKey) -> None:
        opened = self._open[piece]
        if len(opened.completions) == len(opened.request):
            del self._open[piece]
            in_order = tuple(opened.completions[n] for n in range(opened.request.first, opened.request.stop))
            self._done.append(Generated(opened.request, in_order))

    def _failed(self, number: int, prompt_tokens: int, reason: str) -> Completion:
        return Completion(number, "", prompt_tokens, 0, "error", self._name, reason)
