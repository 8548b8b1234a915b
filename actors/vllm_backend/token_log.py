"""Keep the log-probabilities of sampled tokens by request, from their step to the end of the request.

vLLM would make Python objects of them at each step, on their way from the worker to the caller: on an H200 that costs 38%
of the speed. Here a token costs two numbers in an array. This knows neither vLLM nor torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

KEY = "rollout_ray"  # of the number of a request, in the extra_args of its sampling parameters

_NOTHING: tuple[array[int], array[float]] = (array("i"), array("f"))


class TokenLog:
    """The tokens that a worker samples, with their log-probabilities.

    A preempted request goes on where it was. vLLM may sample a token that it then leaves out; `accepted` finds such ones.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[array[int], array[float]]] = {}  # by vLLM's name of a request
        self._names: dict[int, str] = {}

    def begin(self, name: str, number: int) -> None:
        """Keep the tokens of a request from now on. A request that was begun before keeps what it has."""
        self._names[number] = name
        self._tokens.setdefault(name, (array("i"), array("f")))

    def record(self, names: Sequence[str], tokens: Sequence[Sequence[int]], logprobs: Any, starts: Any = None) -> None:
        """Add the tokens of one step.

        Args:
            names: The requests of the step.
            tokens: The sampled tokens of each request: one, none in the midst of a prefill, several with speculation.
            logprobs: Their log-probabilities, as a NumPy array of shape (rows, 1 or more), with the sampled one first.
            starts: The first row of each request. None: a request has one row.
        """
        values: list[float] = logprobs[:, 0].tolist()
        for place, (name, sampled) in enumerate(zip(names, tokens, strict=True)):
            kept = self._tokens.get(name)
            if kept is None or not sampled:
                continue
            if starts is None:  # twice as fast as to extend: 0.5 us a token
                kept[0].append(sampled[0])
                kept[1].append(values[place])
            else:
                kept[0].extend(sampled)
                kept[1].extend(values[starts[place] : starts[place] + len(sampled)])

    def take(self, numbers: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """Return the tokens and log-probabilities of requests as bytes (int32, float32), and forget them.

        A request that never began has none.
        """
        found = []
        for number in numbers:
            name = self._names.pop(number, "")
            ids, logprobs = self._tokens.pop(name, _NOTHING)
            found.append((ids.tobytes(), logprobs.tobytes()))
        return found


def accepted(tokens: Sequence[int], taken: Sequence[bytes]) -> tuple[array[int], array[float]]:
    """Return the tokens of a finished request, and the log-probability of each.

    vLLM may sample beyond the end of a request, and leave out what it sampled before it preempted the request. What it
    left out has no place among the tokens.

    Args:
        tokens: The tokens of the output.
        taken: What `TokenLog.take` returned for the request.

    Raises:
        RuntimeError: The worker did not sample the tokens of the output.
    """
    due = array("i", tokens)
    ids = array("i")
    logprobs = array("f")
    ids.frombytes(taken[0])
    logprobs.frombytes(taken[1])
    if ids[: len(due)] == due:
        return due, logprobs[: len(due)]
    kept = array("f")
    sampled = iter(zip(ids, logprobs, strict=True))
    for token in due:
        value = next((value for one, value in sampled if one == token), None)
        if value is None:
            raise RuntimeError(
                f"vLLM gave log-probabilities for {len(ids)} tokens, which are not the {len(due)} tokens of the output; "
                "leave out --tokens"
            )
        kept.append(value)
    return due, kept
