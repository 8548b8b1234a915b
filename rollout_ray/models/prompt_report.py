"""Say how a run words its prompts, warn of surprises, and show the first prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rollout_ray.core.errors import Refused
from rollout_ray.core.records import Arm, Prompt
from rollout_ray.models.prompt_encoder import PromptEncoder
from rollout_ray.models.prompt_wording import check_examples
from rollout_ray.models.resolved_run import ResolvedRun


@dataclass(frozen=True)
class PromptReport:
    """What an engine says of a run's prompts.

    Attributes:
        notes: Sentences that name the wording and what ends an output.
        warnings: Sentences about what its user may not expect.
        first: The text of the first prompt: (names of the arms, text) for each prompt variant.
    """

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    first: tuple[tuple[tuple[str, ...], str], ...] = ()


def report_prompts(encoder: PromptEncoder, run: ResolvedRun) -> PromptReport:
    """Return the report of a run that the encoder has begun. Raise ConfigError if its prompts seem to be rendered."""
    warnings = check_examples(run.examples, encoder.special, encoder.wording)
    if encoder.wording == "chat":
        warnings += _template_warnings(encoder, run.arms)
    first: tuple[tuple[tuple[str, ...], str], ...] = ()
    if run.examples.first is not None:
        first = tuple(_variants(encoder, run.examples.first, run.arms))
    return PromptReport((_wording(encoder, run), *_stops(run.arms, encoder.hidden)), tuple(warnings), first)


def variants_of(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Return the arms in groups whose prompts have the same tokens."""
    groups: dict[tuple[str | None, str], list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.prompt_variant, []).append(arm)
    return list(groups.values())


def _wording(encoder: PromptEncoder, run: ResolvedRun) -> str:
    if encoder.wording == "chat":
        owner = "the model's" if run.config.model.chat_template is None else "the given"
        return f"prompts are worded by {owner} chat template"
    if encoder.wording == "rendered":
        return "prompts are sent as they stand, and special tokens in them are tokens"
    reason = "" if encoder.has_template else "the tokenizer has no chat template: "
    if encoder.wording == "raw":
        return f"{reason}prompts are sent as they stand"
    return f"{reason}prompts read 'Problem: ... Solution:'. --prompt_style raw sends them as they stand"


def _stops(arms: Sequence[Arm], tokens: Collection[str]) -> Iterator[str]:
    stops = dict.fromkeys(stop for arm in arms for stop in arm.stop)
    strings = [repr(stop) for stop in stops if stop not in tokens]
    if strings:
        yield f"outputs end at the stop strings {', '.join(strings)}"
    if special := [stop for stop in stops if stop in tokens]:
        yield f"outputs end at the special tokens {', '.join(special)}"


def _template_warnings(encoder: PromptEncoder, arms: Sequence[Arm]) -> Iterator[str]:
    if encoder.system_refusal is not None and any(arm.system_prompt is not None for arm in arms):
        yield (
            f"the chat template takes no system message ({encoder.system_refusal}); the arms' system prompts open the "
            "user's turn instead"
        )
    if (bos := encoder.bos(arms[0])) is not None:
        yield (
            f"the tokenizer begins every text with {bos}, and the chat template does not; put {{{{ bos_token }}}} at its "
            "beginning if the model was trained so"
        )


def _variants(encoder: PromptEncoder, prompt: Prompt, arms: Sequence[Arm]) -> Iterator[tuple[tuple[str, ...], str]]:
    for same in variants_of(arms):
        try:
            text = encoder.text_of(encoder.encode(prompt, same[0]))
        except Refused as refused:
            text = f"refused: {refused}"
        yield tuple(arm.name for arm in same), text
