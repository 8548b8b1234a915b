"""Turns output tokens into text when a request is done, many at a time.

vLLM would do it token by token in the thread that feeds the engine; here it is one call of the tokenizers library, which
runs beside Python. The text is the same: what the output adds to the text of the prompt's last tokens. It finds no stop
strings; a run that has some leaves the text to vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import ByteLevel, DecodeStream

_UNREADABLE = "\ufffd"
_LOST = "Invalid prefix encountered"  # how the library's decoder says that it cannot go on
_CONTEXT = 6  # prompt tokens that decide how the output begins (a leading space, the rest of a character)


@dataclass(frozen=True, slots=True)
class Output:
    """The tokens of one request; `stopped` where the last of them ended the output and is no part of its text."""

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
        """The text of each output, without special tokens and without a character that is cut off at its end."""
        contexts = [list(o.prompt_tokens[-_CONTEXT:]) for o in outputs]
        tokens = [list(o.tokens[:-1] if o.stopped else o.tokens) for o in outputs]
        whole = self._decode([c + t for c, t in zip(contexts, tokens, strict=True)])
        before = self._decode(contexts)
        return [
            w[len(b) :] if self._is_whole(w) else self._step_by_step(c, t)
            for w, b, c, t in zip(whole, before, contexts, tokens, strict=True)
        ]

    def _is_whole(self, text: str) -> bool:
        """Whether the tokens decoded together give the text that they give one after the other."""
        return not (text.endswith(_UNREADABLE) if self._byte_level else _UNREADABLE in text)

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.decode_batch(sequences, skip_special_tokens=True)
        return texts

    def _step_by_step(self, context: list[int], tokens: list[int]) -> str:
        """The text of tokens that are no UTF-8 together: one unreadable byte must not take readable characters with it,
        and the bytes of a character that is cut off at the end are left out."""
        stream = DecodeStream(ids=context, skip_special_tokens=True)
        text = ""
        for token in tokens:
            try:
                text += stream.step(self._tokenizer, token) or ""
            except Exception as error:  # the library has no class of its own for it
                if not str(error).startswith(_LOST):
                    raise
                # Bytes that no longer are the characters which they were: it goes on from here, as in vLLM.
                stream = DecodeStream(skip_special_tokens=True)
                text += stream.step(self._tokenizer, token) or ""
        return text
