"""Translate an arm into vLLM's sampling parameters, and refuse those that vLLM does not take.

It imports vLLM when it is first used. An engine of the caller tries the parameters, because vLLM compares token ids with
the vocabulary and reads grammars only when it gets a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rollout_ray.config.arm_schema import SamplingConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Arm
from rollout_ray.core.redaction import shorten

NOTHING_HIDDEN: Mapping[str, int] = {}


def refusals() -> tuple[type[Exception], ...]:
    """Return the errors that vLLM raises about a request. Values of a wrong type end in Python's own errors."""
    from vllm.exceptions import VLLMValidationError

    return (VLLMValidationError, ValueError, TypeError, AttributeError, LookupError)


def arm_parameters(
    arm: Arm,
    sampling: SamplingConfig,
    hidden: Mapping[str, int] = NOTHING_HIDDEN,
    attempt: Callable[[dict[str, Any]], None] = lambda parameters: None,
) -> dict[str, Any]:
    """Return the keyword arguments of SamplingParams that all requests of an arm share.

    Args:
        arm: The arm.
        sampling: Parameters of the whole run.
        hidden: Ids of the tokens that an output's text does not show, by their names.
        attempt: Gives an engine a request with these keyword arguments. Raises what the engine raises.

    Raises:
        ConfigError: vLLM refuses them, or a stop string can never be found. The message names the parameter.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    strings, tokens = split_stops(arm, hidden)
    parameters: dict[str, Any] = {
        "temperature": arm.temperature,
        "top_p": arm.top_p,
        "top_k": max(arm.top_k, 0),
        "repetition_penalty": arm.repetition_penalty,
        "stop": strings or None,
        "ignore_eos": sampling.ignore_eos,
        "output_kind": RequestOutputKind.FINAL_ONLY,
        "skip_clone": True,  # no other request has these, and a deep copy is a third of the cost of adding one
    }
    try:
        parameters |= _checked(arm.extra_sampling, arm.max_tokens)
        if tokens:
            parameters["stop_token_ids"] = [*(parameters.get("stop_token_ids") or ()), *tokens]
        SamplingParams(**parameters, max_tokens=arm.max_tokens)
        attempt(parameters)
    except refusals() as error:
        named = _refused(arm, attempt)
        what = (
            f"extra_sampling: {named} of the arm {arm.name}" if named else f"the sampling parameters of the arm {arm.name}"
        )
        raise ConfigError(f"vLLM refuses {what}: {error}; correct it") from error
    return parameters


def split_stops(arm: Arm, hidden: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Return the stop strings of an arm that stand in texts, and the token ids of its other stop strings.

    Raises:
        ConfigError: A stop string holds a hidden token among other text, so it can never be found.
    """
    if arm.extra_sampling.get("skip_special_tokens") is False:  # the text shows every token
        return list(arm.stop), []
    strings = [stop for stop in arm.stop if stop not in hidden]
    for stop in strings:
        if name := next((name for name in hidden if name in stop), None):
            raise ConfigError(
                f"the stop string {stop!r} of the arm {arm.name} holds the special token {name}, which no output shows; "
                f"give --stop '{name}' alone"
            )
    return strings, [hidden[stop] for stop in arm.stop if stop in hidden]


def _checked(extra: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """Return the parameters in the form that SamplingParams has them. Raises what vLLM raises about them."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    given = dict(extra)
    if isinstance(given.get("structured_outputs"), Mapping):
        given["structured_outputs"] = StructuredOutputsParams(**given["structured_outputs"])
    made = SamplingParams.from_optional(max_tokens=max_tokens, **given)
    return {name: getattr(made, name) for name in given}


def _refused(arm: Arm, attempt: Callable[[dict[str, Any]], None]) -> str | None:
    """Return the first extra parameter, with its value, that vLLM refuses by itself."""
    for name, value in arm.extra_sampling.items():
        try:
            attempt(_checked({name: value}, arm.max_tokens))
        except refusals():
            return f"{name} {shorten(repr(value), 60)}"
    return None
