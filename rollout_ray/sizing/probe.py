"""Choose the size of a probe, and say how far its speed can be trusted."""

from __future__ import annotations

from rollout_ray.core.errors import ConfigError

SMALLEST_PROBE = 8  # questions
PROBE_SHARE = 0.1  # of the run's questions


def probe_size(questions: int, samples: int, places: int, wanted: int) -> int:
    """Return how many questions a probe draws. Its draws are thrown away, so it never draws the whole run.

    Args:
        questions: Questions of the run.
        samples: Samples of a question.
        places: Sequences that all engines decode at once.
        wanted: What the user asked for. 0: as many as fill the engines three times, and at most PROBE_SHARE of the run.

    Raises:
        ConfigError: The probe would be the whole run.
    """
    if wanted >= questions > 0 or (questions == 1 and not wanted):
        raise ConfigError(
            f"a probe of {wanted or 1} questions would draw the whole run of {questions} and throw it away. Start the run "
            "itself, or give a smaller --probe"
        )
    filling = max(SMALLEST_PROBE, -(-3 * places // samples))
    return wanted or max(1, min(filling, int(PROBE_SHARE * questions)))


def probe_caveat(count: int, samples: int, places: int) -> str | None:
    """Return a warning if a probe filled the engines less than twice, or None."""
    filled = count * samples / places
    if filled >= 2:
        return None
    return (
        f"The probe had {count * samples:,} trajectories for {places:,} places, so its batch was never full for long. Its "
        f"speed may be off by a factor of two. --probe {-(-3 * places // samples)} would fill the engines three times."
    )
