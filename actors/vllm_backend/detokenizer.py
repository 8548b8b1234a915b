"""Detokenize finished outputs off the engine thread, many at a time.

vLLM would decode token by token in the thread that feeds the engine. The tokenizers library decodes all in one call.
Invariant: the text is the one that vLLM makes. This finds no stop strings, so a run with some leaves the text to vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import ByteLevel, DecodeStream

_UNREADABLE = "\ufffd"
_LOST = "Invalid prefix encountered"  # the decoder of the library cannot go on
_CONTEXT = 6  # prompt tokens that decide how the output begins: a leading space, the rest of a character


@dataclass(frozen=True, slots=True)
class Output:
    """The tokens of one request. `stopped`: the last token ended the output, and is not part of the text."""

    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    stopped: bool


class TextDecoder:
    """Decodes with a tokenizer of the tokenizers library."""

    def __init__(self, backend_tokenizer: Any) -> None:
        self._tokenizer = backend_tokenizer
        # Of byte-level tokens only the bytes that are no character are replaced; a byte fallback replaces others with them.
        self._byte_level = isinstance(backend_tokenizer.decoder, ByteLevel)

    def texts(self, outputs: Sequence[Output]) -> list[str]:
        """Return the text of each output, without special tokens and without a character that is cut off at its end."""
        contexts = [list(o.prompt_tokens[-_CONTEXT:]) for o in outputs]
        tokens = [list(o.tokens[:-1] if o.stopped else o.tokens) for o in outputs]
        whole = self._decode([c + t for c, t in zip(contexts, tokens, strict=True)])
        before = self._decode(contexts)
        return [
            w[len(b) :] if self._is_whole(w) else self._step_by_step(c, t)
            for w, b, c, t in zip(whole, before, contexts, tokens, strict=True)
        ]

    def _is_whole(self, text: str) -> bool:
        """Return whether the tokens give the same text together as one after the other."""
        return not (text.endswith(_UNREADABLE) if self._byte_level else _UNREADABLE in text)

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.decode_batch(sequences, skip_special_tokens=True)
        return texts

    def _step_by_step(self, context: list[int], tokens: list[int]) -> str:
        """Decode tokens that are not UTF-8 together.

        An unreadable byte must not take readable characters with it. A character that is cut off at the end is left out.
        """
        stream = DecodeStream(ids=context, skip_special_tokens=True)
        text = ""
        for token in tokens:
            try:
                text += stream.step(self._tokenizer, token) or ""
            except Exception as error:  # the library raises no class of its own
                if not str(error).startswith(_LOST):
                    raise
                # These bytes are no longer the characters they were. Decoding starts anew here, as in vLLM.
                stream = DecodeStream(skip_special_tokens=True)
                text += stream.step(self._tokenizer, token) or ""
        return text
