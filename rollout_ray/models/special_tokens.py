"""Special tokens of a tokenizer: which of them a text hides, and which of those grading must see.

This reads tokenizers and the files of a tokenizer's folder. prompt_encoder.py keeps special tokens out of questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import Refused

CUT = "\uf8ff\ue000\uf8ff"  # private characters that mark a cut; no text may hold them in this order

# Grading drops a thought, and reads an answer between tags. Some models have these tags as special tokens.
_READ_BY_GRADING = re.compile(r"</?(?:think(?:ing)?|answer)>", re.IGNORECASE)


class Marks:
    """Marks special tokens in a text, so that its parts between two marks hold no whole one.

    Args:
        names: The special tokens.
    """

    def __init__(self, names: Collection[str]) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def mark(self, text: str) -> str:
        """Return the text with a mark inside every special token. Raise Refused if it holds a mark already."""
        if CUT in text:
            raise Refused("the prompt holds the private characters U+F8FF U+E000 U+F8FF, which mark special tokens here")
        chunks, begin = [], 0
        while self._pattern and (found := self._pattern.search(text, begin)):
            chunks.append(text[begin : found.start() + 1])
            begin = found.start() + 1
        return CUT.join([*chunks, text[begin:]])


def unforgeable_tokens(tokenizer: Any, frame: str) -> frozenset[str]:
    """Return the tokens that no text of a question may become: special tokens, and added ones that frame a turn.

    Args:
        tokenizer: A tokenizer with transformers' interface.
        frame: A conversation under the chat template, or an empty text.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    # Some tokenizers have white space among the added tokens; it frames nothing.
    framing = {t.content for t in added if t.special or (t.content.strip() and t.content in frame)}
    return frozenset(framing | set(tokenizer.all_special_tokens))


def hidden_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the tokens that a decoded text leaves out, by their names."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token.content: number for number, token in added.items() if token.special}
    found |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {name: number for name, number in found.items() if name.strip()}


def read_by_grading(names: Collection[str]) -> list[str]:
    """Return those of the tokens that grading reads in a text."""
    return [name for name in names if _READ_BY_GRADING.fullmatch(name)]


def showing(backend_tokenizer: Any, names: Collection[str]) -> Any:
    """Return a copy of a tokenizer of the tokenizers library whose texts show these special tokens.

    The library cannot take the mark of a special token back, so that the copy is made from the description.
    """
    from tokenizers import Tokenizer

    description = json.loads(backend_tokenizer.to_str())
    for token in description["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in names
    return Tokenizer.from_str(json.dumps(description))


def stored_special_tokens(folder: str) -> frozenset[str]:
    """Return the names of the special tokens in a tokenizer's folder; nothing if it has no tokenizer.json."""
    try:
        added = json.loads((Path(folder) / "tokenizer.json").read_bytes())["added_tokens"]
        return frozenset(token["content"] for token in added if token["special"] and token["content"].strip())
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()
