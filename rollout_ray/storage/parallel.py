"""Map a function over items in a few threads, with bounded lookahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_parallel(function: Callable[[_T], _R], items: Iterable[_T], at_once: int) -> Iterator[_R]:
    """Yield `function` of each item, in order. At most `at_once` calls are started and not yet yielded."""
    with ThreadPoolExecutor(at_once) as pool:
        started: deque[Future[_R]] = deque()
        try:
            for item in items:
                started.append(pool.submit(function, item))
                if len(started) == at_once:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            for future in started:
                future.cancel()
