"""Get the token ids and log-probabilities of finished requests from the workers that sampled them.

vLLM's own outputs have the ids; worker.py keeps the log-probabilities. Each request is asked for once, at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from rollout_ray.actors.backend import Finished
from rollout_ray.actors.vllm_backend.token_log import KEY, accepted


class FinishedTokens:
    """The requests of a run that stores tokens, by numbers that workers know them by.

    A key may come back after an abort; a number never does.
    """

    def __init__(self, call_workers: Callable[..., list[Any]]) -> None:
        """Begin without a run. `call_workers` calls a method of every worker, as vLLM's `collective_rpc`."""
        self._call_workers = call_workers
        self._stored = False
        self._numbers: dict[str, int] = {}
        self._dropped: list[int] = []
        self._next = count()

    def begin(self, stored: bool) -> None:
        """Begin a run, without requests. `stored`: the run stores tokens."""
        self.drop(list(self._numbers))
        if self._dropped:
            self._take([])
        self._stored = stored

    def parameters(self, key: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a request's sampling parameters need besides `parameters`."""
        if not self._stored:
            return {}
        self._numbers[key] = number = next(self._next)
        return {"logprobs": 0, "extra_args": {**(parameters.get("extra_args") or {}), KEY: number}}

    def drop(self, keys: Sequence[str]) -> None:
        """Forget requests that are aborted."""
        self._dropped += [self._numbers.pop(key) for key in keys if key in self._numbers]

    def given(self, finished: Sequence[Finished], outputs: Sequence[Any]) -> list[Finished]:
        """Return the finished requests with their tokens. Aborted requests are left out.

        Args:
            finished: The requests.
            outputs: vLLM's RequestOutput of each.

        Raises:
            RuntimeError: The workers have no log-probabilities for the tokens of an output.
        """
        if not self._stored or not finished:
            return list(finished)
        known = [(one, output) for one, output in zip(finished, outputs, strict=True) if one.key in self._numbers]
        taken = self._take([self._numbers.pop(one.key) for one, _ in known])
        found = []
        for (one, output), bytes_of_one in zip(known, taken, strict=True):
            ids, logprobs = accepted(output.outputs[0].token_ids, bytes_of_one)
            found.append(replace(one, token_ids=ids, logprobs=logprobs))
        return found

    def _take(self, numbers: Sequence[int]) -> Sequence[Sequence[bytes]]:
        """Take the tokens of requests from the worker that has them. Dropped requests go with them."""
        dropped, self._dropped = self._dropped, []
        workers = self._call_workers("rollout_take_tokens", args=([*numbers, *dropped],))
        # With pipeline parallelism, the workers of the first layers know the requests, and sample nothing.
        taken: list[Sequence[bytes]] = max(workers, key=lambda worker: sum(len(ids) for ids, _ in worker))
        return taken[: len(numbers)]
