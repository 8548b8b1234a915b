"""Define the errors that end a run and the exit code of each.

Each error is named after the boundary that failed. A bad row raises nothing: it becomes an error trajectory.
"""

from __future__ import annotations


class RolloutError(Exception):
    """Base of every error that rollout_ray raises on purpose. The text states the cause, then the remedy."""

    exit_code = 1


class ConfigError(RolloutError):
    """A field is unknown, out of range, or contradicts another field."""

    exit_code = 2


class DatasetError(RolloutError):
    """The question set cannot be read. The text names file, row and column if they are known."""

    exit_code = 3


class PlacementError(RolloutError):
    """The available machines cannot hold the requested engines."""

    exit_code = 4


class EngineError(RolloutError):
    """No engine is left to generate with. The text quotes the last engine's error."""

    exit_code = 5


class GradingError(RolloutError):
    """The symbolic grader process cannot start on this machine."""


class LedgerError(RolloutError):
    """The run directory holds another run (other config or data), or cannot be written."""

    exit_code = 6


class IncompleteError(RolloutError):
    """The merge did not find every question exactly once. The text lists the missing questions."""

    exit_code = 7


class VerifyError(RolloutError):
    """A merged file cannot be read, or contradicts the values that its own texts and metadata give."""

    exit_code = 8


class CloudError(RolloutError):
    """The cloud refused a call, cannot be reached, or has no key here; or a cluster connection stays lost."""

    exit_code = 10


class TooManyErrors(RolloutError):
    """Too many trajectories are errors. The rows hold all of them, each with its reason."""

    exit_code = 11


class Interrupted(RolloutError):
    """Ctrl-C or SIGTERM stopped the run. Complete questions are saved, and the same command resumes."""

    exit_code = 130


class BudgetSpent(Interrupted):
    """The run used up its budget. Complete questions are saved, and the same command resumes."""

    exit_code = 9


class Refused(Exception):
    """A backend cannot take one request. The text becomes the trajectory's error."""
