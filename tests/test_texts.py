"""Tests of actors/vllm_backend/detokenizer.py against vLLM's own detokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rollout_ray.actors.vllm_backend.detokenizer import Output, TextDecoder
from rollout_ray.models.paths import model_folder


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Every token is one byte, so that most random outputs are no UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def spaces_tokenizer() -> PreTrainedTokenizerFast:
    """Words carry their leading space, which a decoder strips from a text's first word, as in Llama 2."""
    words = ["<unk>", "\u2581a", "\u2581b", "c", "\u2581", "\u2581\u2581", "<0xC3>", "<0xA9>", "d"]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {
    "demo": AutoTokenizer.from_pretrained(model_folder("demo")),
    "bytes": bytes_tokenizer(),
    "spaces": spaces_tokenizer(),
}


def by_vllm(tokenizer: PreTrainedTokenizerFast, prompt: list[int], tokens: list[int], stopped: bool) -> str:
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    request = SimpleNamespace(request_id="0", sampling_params=SamplingParams(), prompt_token_ids=prompt)
    detokenizer = FastIncrementalDetokenizer(tokenizer, request)  # type: ignore[arg-type]
    for number, token in enumerate(tokens):
        detokenizer.update([token], stop_terminated=stopped and number == len(tokens) - 1)
    return detokenizer.get_next_output_text(finished=True, delta=False)


def test_bytes_that_are_no_characters_after_all_do_not_end_an_output() -> None:
    """The decoder of the tokenizers library raises on these."""
    tokenizer = TOKENIZERS["spaces"]
    tokens = [6, 7, 6, 1, 1]
    (text,) = TextDecoder(tokenizer.backend_tokenizer).texts([Output([3], tokens, stopped=False)])
    assert text == by_vllm(tokenizer, [3], tokens, stopped=False) and text.startswith("é")


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300)
@given(data=st.data())
def test_the_text_is_vllms(name: str, data: st.DataObject, long_computation: None) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = tokenizer.encode(data.draw(st.text(alphabet="ab é€\n", min_size=1)) + "c", add_special_tokens=False)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=24))
    stopped = data.draw(st.booleans())
    (text,) = TextDecoder(tokenizer.backend_tokenizer).texts([Output(prompt, tokens, stopped)])
    assert text == by_vllm(tokenizer, prompt, tokens, stopped)
