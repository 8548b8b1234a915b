"""Check the tokenizer of a local model before an engine loads it: is it there, and does the model know all its tokens.

It reads tokenizer.json. Tokenizers of other formats are only checked for being there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout_ray.config.templates import end_token, stored_template
from rollout_ray.core.errors import ConfigError
from rollout_ray.models.weight_files import is_pointer, read_json

VOCABULARIES = ("tokenizer.json", "*.model*", "*vocab*", "*.tiktoken", "tekken.json", "merges.txt", "*.tok.json")


def check_tokenizer(folder: Path) -> None:
    """Raise ConfigError if the folder holds no tokenizer."""
    files = [file for pattern in VOCABULARIES for file in folder.glob(pattern)]
    if pointer := next(filter(is_pointer, files), None):
        raise ConfigError(f"{pointer} is a git-lfs pointer and no tokenizer; run `git lfs pull` in its folder")
    settings = folder / "tokenizer_config.json"
    if not files and not (settings.exists() and "auto_map" in read_json(settings)):
        raise ConfigError(
            f"{folder} holds no tokenizer; save it there with tokenizer.save_pretrained, or give --tokenizer_path with the "
            "folder of the base model"
        )


def check_token_ids(folder: Path, rows: int, template: str | None) -> None:
    """Raise ConfigError if a prompt can get a token that the model has no embedding for.

    Special tokens that no chat template writes do not count: no text becomes one. Gemma 3 1B has such a token.

    Args:
        folder: Folder of the tokenizer.
        rows: Rows of the embedding.
        template: Chat template of the run; None: the tokenizer's own.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        return
    content = read_json(file)
    written = (template or stored_template(str(folder)) or "") + (end_token(str(folder)) or "")
    beyond = [word for word, number in _ordinary(content).items() if number >= rows]
    beyond += [word for word, number in _special(content).items() if number >= rows and word in written]
    if beyond:
        raise ConfigError(
            f"the tokenizer in {folder} has {len(beyond)} tokens beyond the {rows} rows of the model's embedding, such as "
            f"{beyond[0]!r}; resize the embedding and train it, or give --tokenizer_path with the model's own tokenizer"
        )


def _ordinary(content: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of tokens that text becomes, by the token."""
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score, in the order of their ids
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    special = _special(content)
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    return {word: number for word, number in (vocabulary | added).items() if word not in special}


def _special(content: Mapping[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in content.get("added_tokens", ()) if token.get("special")}
