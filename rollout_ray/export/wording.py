"""Choose between conversations and plain texts for the rows of a trainer.

A base model has no chat template, so its trainer cannot render messages. It gets the texts that the model was sent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rollout_ray.config.arms import problem_text, raw_text
from rollout_ray.config.schema import PromptStyle, RunConfig
from rollout_ray.config.templates import stored_template
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Prompt
from rollout_ray.export.trainer_rows import Row, conversation
from rollout_ray.models.paths import model_folder
from rollout_ray.models.prompt_wording import choose_wording
from rollout_ray.results.merged_file import MergedFile

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def are_texts(runs: Sequence[MergedFile]) -> bool:
    """Return whether the rows hold plain texts. Raise ConfigError if the runs differ in that."""
    found = [text_style(run.description.config) is not None for run in runs]
    if any(found) and not all(found):
        names = ", ".join(run.path for run, plain in zip(runs, found, strict=True) if plain)
        raise ConfigError(f"{names} has a model without a chat template, and another run has one. Export them one by one.")
    return all(found) and bool(found)


def has_no_template(config: RunConfig) -> bool:
    """Return whether the tokenizer is on this machine and has no chat template."""
    if config.model.chat_template is not None:
        return False
    folder = model_folder(config.model.tokenizer_path or config.model.model_path)
    has_tokenizer = any(os.path.isfile(os.path.join(folder, name)) for name in TOKENIZERS)
    return has_tokenizer and stored_template(folder) is None


def text_style(config: RunConfig) -> PromptStyle | None:
    """Return how the texts of a run's prompts are worded; None if they are conversations."""
    style = config.model.prompt_style
    if style is None and has_no_template(config):
        return choose_wording(None, has_template=False, prompt_template=config.data.prompt_template)
    return None if style == "chat" else style


def worded(prompt: Prompt, system_prompt: str | None, style: PromptStyle | None) -> list[Row] | str:
    """Return the prompt as the text that the model was sent, or as a conversation if there is no style."""
    if style is None:
        return conversation(prompt, system_prompt)
    return (problem_text if style == "problem" else raw_text)(prompt, system_prompt)
