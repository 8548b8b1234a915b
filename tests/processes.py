"""The processes that a run starts, found by their command lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import psutil

# What Ray shows as an actor's command line: its class between its calls, and its own name during them.
ENGINES = ("ray::EngineActor", "ray::engine-")
SCORERS = ("ray::ScorerActor", "ray::scorer-")


def children(of: psutil.Process, *words: str, recursive: bool = False) -> list[psutil.Process]:
    """Those whose command line holds one of these words; one that ends meanwhile is none."""
    found = []
    for process in of.children(recursive=recursive):
        with contextlib.suppress(psutil.NoSuchProcess):
            while not (command := process.cmdline()):  # it is just being given its program
                time.sleep(0.001)
            if any(word in " ".join(command) for word in words):
                found.append(process)
    return found


def servers(of: psutil.Process) -> list[psutil.Process]:
    """The servers of engines' processes that this process has started."""
    return children(of, "rollout_ray.actors.engine.process")


def workers(of: psutil.Process, titles: Sequence[str]) -> list[psutil.Process]:
    """Actors' processes of that process's own Ray: `titles` is ENGINES or SCORERS."""
    return children(of, *titles, recursive=True)


def later_workers(titles: Sequence[str]) -> Callable[[], set[int]]:
    """Tells the pids of those of this process's own Ray (see `workers`) that were not there yet at this call: what an
    earlier test started may still be ending."""

    def pids() -> set[int]:
        return {process.pid for process in workers(psutil.Process(), titles)}

    earlier = pids()
    return lambda: pids() - earlier
