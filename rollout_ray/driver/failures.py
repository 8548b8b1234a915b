"""Tell whether an actor's process ended or its method raised, and put the error on one line."""

from __future__ import annotations

import re

from ray.exceptions import RayActorError, RayError, RayTaskError

from rollout_ray.actors.engine.logs import last_lines
from rollout_ray.actors.engine.out_of_memory import NoMemory
from rollout_ray.actors.engine.process import EngineLost

LOG_LINES = 6
# Ray's words, where its memory monitor has ended a process, and ours, where the system has.
_MEMORY_RAN_OUT = re.compile(r"running low on memory|ran out of memory")
_MOST_CHARACTERS = 600


class StartTimedOut(Exception):
    """An engine did not load within the limit. Another start would hang as well, so it counts as a refusal."""


def cause_of(error: Exception) -> Exception:
    """Return what an actor's method raised, or `error` itself where the actor is gone."""
    cause: object = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, Exception) else error


def was_killed(error: Exception) -> bool:
    """Return whether a process ended or hangs, as opposed to an exception that it raised."""
    ended = isinstance(error, (RayError, EngineLost, TimeoutError))
    return ended and not isinstance(error, RayTaskError)


def reason_of(error: Exception) -> str:
    """Return an error on one line. Ray reports a death on many lines; those that say why are kept."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayActorError):
        why = [line for line in lines if not line.startswith(("class_name", "actor_id", "pid", "namespace", "ip", "name"))]
        return " ".join(why).partition(" Some common causes")[0][:_MOST_CHARACTERS]
    return " ".join(lines)[:_MOST_CHARACTERS] or type(error).__name__


def last_words(error: Exception, log_file: str | None) -> str:
    """Return the error and, where the process gave no reason itself, the end of its log."""
    words = reason_of(error)
    silent = was_killed(error) or isinstance(error, StartTimedOut)
    lines = last_lines(log_file, LOG_LINES) if log_file and silent else []
    words = f"{words}; the end of {log_file}: {' | '.join(lines)}" if lines else words
    return f"{words}. {remedy}" if (remedy := memory_remedy(error)) else words


def memory_remedy(error: Exception) -> str:
    """Return what to do if a process ended for lack of memory; empty if it ended for another reason."""
    if isinstance(error, NoMemory) or _MEMORY_RAN_OUT.search(str(error)):
        return "Lower --replicas, --scorers, --max_num_seqs or --kv_cache_gib, or give the machine or container more memory"
    return ""
