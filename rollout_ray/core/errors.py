"""The named failures. A bad row is data (it becomes an error trajectory); a bad run raises one of these.

Each error is named after the boundary it crossed. `exit_code` is what the command line returns for it.
"""

from __future__ import annotations


class RolloutError(Exception):
    """Base of every failure that rollout_ray raises on purpose. Its text is one sentence of cause and one of remedy."""

    exit_code = 1


class ConfigError(RolloutError):
    """A field is unknown, out of range, or contradicts another."""

    exit_code = 2


class DatasetError(RolloutError):
    """The question set cannot be read; the text names the file, the row and the column where there are such."""

    exit_code = 3


class PlacementError(RolloutError):
    """The machines at hand cannot hold the engines that were asked for."""

    exit_code = 4


class EngineError(RolloutError):
    """No engine is left to generate with; the text carries the last engine's own words."""

    exit_code = 5


class GradingError(RolloutError):
    """No process that compares answers symbolically can be started here."""


class LedgerError(RolloutError):
    """The run directory belongs to another run (its config or data differ), or cannot be written."""

    exit_code = 6


class IncompleteError(RolloutError):
    """The merge did not find every question exactly once; the text lists what is missing."""

    exit_code = 7


class VerifyError(RolloutError):
    """A merged file cannot be read, or disagrees with what its own texts and description give."""

    exit_code = 8


class CloudError(RolloutError):
    """The cloud that a cluster runs on refused a call, cannot be reached, or no key for it is at hand; or the connection to
    a cluster stays lost."""

    exit_code = 10


class Interrupted(RolloutError):
    """The run was asked to stop (Ctrl-C or SIGTERM); what was complete is kept and the same command goes on from there."""

    exit_code = 130


class BudgetSpent(Interrupted):
    """The run came to the end of its budget; what was complete is kept and the same command goes on from there."""

    exit_code = 9


class Refused(Exception):
    """A backend cannot take one request; its text becomes the trajectory's error."""
