"""Choose the reward functions that a verification calls.

The functions that a merged file names are called only for the file in its run directory: the user may not trust others.
"""

from __future__ import annotations

from collections.abc import Mapping

from rollout_ray.core.errors import ConfigError
from rollout_ray.results.findings import Verification
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.scoring.custom_reward import RewardSource, RewardSources, function_name
from rollout_ray.scoring.user_code.rewards import row_columns


def allowed_rewards(merged: MergedFile, given: str | None, result: Verification) -> tuple[RewardSources, tuple[str, ...]]:
    """Return the reward functions to call, and the columns that they see.

    No function means Regime W, or, as `result` then says, that rewards are unchecked.
    """
    scoring = merged.description.config.scoring
    names = merged.given_schema.names
    if given is not None:
        sources = _given_reward(merged, scoring.reward_functions, given, result)
        return sources, row_columns(sources, scoring, names)
    sources = RewardSources.of_config(scoring)
    if not sources.by_name or merged.layout == "responses":
        return RewardSources(), ()
    try:
        if merged.run is None:
            named = ", ".join(scoring.reward_functions.values())
            raise ConfigError(f"the file names the function {named}. Allow the call with --reward {named}")
        return sources, row_columns(sources, scoring, names)
    except ConfigError as error:
        result.rewards_checked = False
        result.unchecked.append(f"rewards were not checked: {error}")
        return RewardSources(), ()


def _given_reward(merged: MergedFile, known: Mapping[str, str], given: str, result: Verification) -> RewardSources:
    """Return the function that the user names. Raise ConfigError if the file has no custom rewards."""
    if not known or merged.layout == "responses":
        has = "holds no rewards" if merged.layout == "responses" else "has no custom reward"
        raise ConfigError(f"{merged.path} {has}, so that {given} has nothing to check; leave out --reward")
    if given not in known.values():
        result.unchecked.append(f"the rewards were recomputed with {given}; the file names {', '.join(known.values())}")
    return RewardSources({function_name(given): RewardSource(given)})
