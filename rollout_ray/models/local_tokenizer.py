"""Load a run's tokenizer in this process, to show or count prompts without an engine."""

from __future__ import annotations

from typing import Any

from rollout_ray.core.errors import ConfigError
from rollout_ray.models.prompt_encoder import PromptEncoder
from rollout_ray.models.resolved_run import ResolvedRun

NO_LIMIT = 1 << 30  # tokens


def load_tokenizer(run: ResolvedRun) -> Any:
    """Return the tokenizer of a run, as transformers loads it. Raise ConfigError if it cannot be loaded."""
    from transformers import AutoTokenizer

    model = run.config.model
    try:
        return AutoTokenizer.from_pretrained(run.tokenizer_path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the tokenizer of {run.tokenizer_path} cannot be loaded here: {reason}; give --tokenizer_path a folder"
        ) from error


def load_encoder(run: ResolvedRun, max_model_len: int = NO_LIMIT) -> PromptEncoder:
    """Return an encoder that words the prompts of a run as an engine does.

    Raises:
        ConfigError: The tokenizer cannot be loaded, or cannot word prompts as the run asks for.
    """
    encoder = PromptEncoder.of(run, load_tokenizer(run), max_model_len)
    encoder.begin(run)
    return encoder
