"""Choose the reward functions that a verification calls.

The functions that a merged file names are called only for the file in its run directory: the user may not trust others.
"""

from __future__ import annotations

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
        sources = _given_rewards(merged, given, result)
        return sources, row_columns(sources, scoring, names)
    sources = RewardSources.of_config(scoring)
    if not sources.by_name or merged.layout == "responses":
        return RewardSources(), ()
    try:
        if merged.run is None:
            named = ",".join(dict.fromkeys(scoring.reward_functions.values()))
            noun = "functions" if "," in named else "function"
            raise ConfigError(f"the file names the {noun} {named}. Allow the call with --reward {named}")
        return sources, row_columns(sources, scoring, names)
    except ConfigError as error:
        result.rewards_checked = False
        result.unchecked.append(f"rewards were not checked: {error}")
        return RewardSources(), ()


def _given_rewards(merged: MergedFile, given: str, result: Verification) -> RewardSources:
    """Return the functions that the user names, with commas between them.

    One other function may stand in for the only function of the file. `result` then says so.

    Raises:
        ConfigError: The file has no custom rewards, or other functions.
    """
    scoring = merged.description.config.scoring
    known = scoring.reward_functions
    if not known or merged.layout == "responses":
        has = "holds no rewards" if merged.layout == "responses" else "has no custom reward"
        raise ConfigError(f"{merged.path} {has}, so that {given} has nothing to check; leave out --reward")
    functions = [name.strip() for name in given.split(",")]
    own = RewardSources.of_config(scoring)
    if {*functions} == {*known.values()}:
        return own
    if len(known) > 1 or len(functions) > 1:
        due = ",".join(dict.fromkeys(known.values()))
        raise ConfigError(f"--reward names {given}, and the rewards of {merged.path} come from {due}. Give --reward {due}")
    result.unchecked.append(f"the rewards were recomputed with {given}; the file names {', '.join(known.values())}")
    name = next(iter(known)) if own.named else function_name(given)
    return RewardSources({name: RewardSource(given)}, own.named)
