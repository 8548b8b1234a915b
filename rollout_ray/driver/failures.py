"""Tell whether an actor's process ended or its method raised, and put the error on one line."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayError, RayTaskError

from rollout_ray.actors.engine.logs import last_lines
from rollout_ray.actors.engine.process import EngineLost

LOG_LINES = 6
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
    return f"{words}; the end of {log_file}: {' | '.join(lines)}" if lines else words
