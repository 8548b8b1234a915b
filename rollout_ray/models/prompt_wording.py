"""Choose how a run words its prompts, and check the first prompts against that.

    chat       the conversation under the chat template
    problem    system prompt, blank line, 'Problem: ... Solution:'
    raw        system prompt, blank line, the text as it stands
    rendered   the text alone, in which special tokens are tokens

Only `rendered` reads special tokens in a question. All others encode their names as letters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from rollout_ray.config.schema import PromptStyle, RunConfig
from rollout_ray.config.templates import stored_template
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Arm, Prompt, Question
from rollout_ray.models.special_tokens import stored_special_tokens

MOST_EXAMPLES = 256
BEGINNING = 80  # characters of each example
LONGEST_FIRST = 1 << 16  # characters of the first prompt that engines get to show it
_REMEDY = "Give --prompt_style rendered if the prompts are rendered already, else take the special tokens out of them"
MISTRAL_FILES = re.compile(r"tekken\.json|tokenizer\.(?:mm\.)?model\.v\d.*")  # a tokenizer whose chat format is code


@dataclass(frozen=True)
class Examples:
    """The first prompts of a run, by which an engine checks and shows its wording.

    Attributes:
        first: The first prompt that can be asked; None if there is none, or if it is very long.
        beginnings: The beginning of each prompt; of a conversation, that of its first message.
        conversations: How many of them are conversations.
    """

    first: Prompt | None = None
    beginnings: tuple[str, ...] = ()
    conversations: int = 0

    @classmethod
    def of(cls, questions: Iterable[Question]) -> Examples:
        """Return the examples of a question set."""
        prompts = [question.prompt for question in islice(questions, MOST_EXAMPLES) if not question.fault]
        texts = [prompt if isinstance(prompt, str) else str(prompt[0]["content"]) for prompt in prompts]
        short = next((prompt for prompt in prompts[:1] if len(str(prompt)) <= LONGEST_FIRST), None)
        conversations = sum(not isinstance(prompt, str) for prompt in prompts)
        return cls(short, tuple(text.lstrip()[:BEGINNING] for text in texts), conversations)


def choose_wording(style: PromptStyle | None, has_template: bool, prompt_template: str | None) -> PromptStyle:
    """Return the wording of a run. Raise ConfigError if it asks for a chat template that is not there.

    The text of a prompt template is the prompt: only prompts of the data get the words Problem and Solution.
    """
    if style == "chat" and not has_template:
        raise ConfigError(
            "prompt_style is chat, but the tokenizer has no chat template; give --chat_template, or --prompt_style raw"
        )
    if style is not None:
        return style
    if has_template:
        return "chat"
    return "problem" if prompt_template is None else "raw"


def check_style(config: RunConfig, arms: Sequence[Arm]) -> None:
    """Raise ConfigError if the prompt style contradicts another field."""
    style = config.model.prompt_style
    if style not in (None, "chat") and config.model.chat_template is not None:
        raise ConfigError(f"prompt_style {style} uses no chat template; leave out chat_template, or prompt_style")
    asked = next((arm.name for arm in arms if arm.system_prompt is not None), None)
    if style == "rendered" and asked is not None:
        raise ConfigError(
            f"prompt_style rendered sends the text alone, and the arm {asked} has a system prompt; give --arm_set samples, "
            "or arms without system prompts"
        )


def check_examples(examples: Examples, special: Iterable[str], wording: PromptStyle) -> list[str]:
    """Return warnings about the first prompts.

    Args:
        examples: The first prompts.
        special: Names of the tokenizer's special tokens.
        wording: The wording of the run.

    Raises:
        ConfigError: All of them seem to be rendered already, or rendered prompts are conversations.
    """
    if wording == "rendered":
        if examples.conversations:
            raise ConfigError(
                "prompt_style rendered takes prompts that are text, and there are conversations among them; leave it out, "
                "so that the chat template renders them"
            )
        return []
    warnings = []
    if examples.conversations and wording != "chat":
        warnings.append(
            "the prompts are conversations and no chat template renders them: their messages are joined by blank lines, "
            "and their roles are lost. Give --chat_template to keep the roles"
        )
    if (name := _first_special(examples, special)) is None:
        return warnings
    if len(examples.beginnings) == 1:
        return [*warnings, f"the prompt begins with the special token {name}, which is encoded as letters. {_REMEDY}"]
    raise _seem_rendered(examples, name)


def refuse_rendered(config: RunConfig, examples: Examples, tokenizer_path: str) -> None:
    """Raise ConfigError before the engines start if the prompts seem to be rendered already.

    It reads the tokenizer's folder, if that is on this machine. The engines check again.
    """
    several = len(examples.beginnings) > 1 and all(text.startswith(("<", "[")) for text in examples.beginnings)
    if config.model.prompt_style == "rendered" or config.engine.backend != "vllm" or not several:
        return
    if (name := _first_special(examples, stored_special_tokens(tokenizer_path))) is not None:
        raise _seem_rendered(examples, name)


def _first_special(examples: Examples, special: Iterable[str]) -> str | None:
    """Return the special token with which the first prompt begins, if all prompts begin with one; else None."""
    names = sorted(special, key=len, reverse=True)
    begun = [next((name for name in names if text.startswith(name)), None) for text in examples.beginnings]
    return begun[0] if begun and None not in begun else None


def _seem_rendered(examples: Examples, name: str) -> ConfigError:
    return ConfigError(
        f"all of the first {len(examples.beginnings)} prompts begin with a special token of the model, such as {name}, and "
        f"special tokens in a question are encoded as letters. {_REMEDY}"
    )


def has_stored_template(config: RunConfig, tokenizer_path: str) -> bool | None:
    """Return whether the tokenizer has a chat template; None if its files do not tell, or are not on this machine."""
    if config.model.chat_template is not None:
        return True
    if not os.path.isdir(tokenizer_path):
        return None
    if stored_template(tokenizer_path) is not None:
        return True
    return None if any(map(MISTRAL_FILES.fullmatch, os.listdir(tokenizer_path))) else False


def wording_identity(config: RunConfig, tokenizer_path: str) -> str | None:
    """Return the wording for the identity of a run; None if it is the one that version 0.1.0 had.

    That version rendered the chat template where there was one, and asked 'Problem: ... Solution:' where there was none.
    """
    style, has_template = config.model.prompt_style, has_stored_template(config, tokenizer_path)
    if style == "chat" or (style == "problem" and has_template is False):
        return None
    if style is not None:
        return style
    if config.data.prompt_template is None or has_template:
        return None
    return "raw" if has_template is False else "by the tokenizer"
