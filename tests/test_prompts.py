"""Prompt tokens under real tokenizers: the demo model's, and copies of it with other templates."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from actors.backend import Refused
from actors.prompts import PromptEncoder
from rollout_ray.arms import WOLFRAM
from rollout_ray.models import model_folder

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
)
ONLY_USER = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}{{ messages[0]['content'] }}"


def tokenizer(template: str | None = "own") -> Any:
    found = AutoTokenizer.from_pretrained(model_folder("demo"))
    if template != "own":
        found.chat_template = template
    return found


def test_the_chat_template_is_used() -> None:
    real = tokenizer()
    tokens = PromptEncoder(real, 2048).encode("What is 2 + 2?", WOLFRAM)
    assert real.decode(tokens) == f"<|system|>{WOLFRAM}<|end|><|user|>What is 2 + 2?<|end|><|assistant|>"


def test_without_a_template_it_is_plain_text() -> None:
    real = tokenizer(None)
    tokens = PromptEncoder(real, 2048).encode("What is 2 + 2?", "Be brief.")
    assert real.decode(tokens) == "Be brief.\n\nProblem: What is 2 + 2?\nSolution:"


def test_a_template_without_a_system_role_gets_it_in_the_users_turn() -> None:
    real = tokenizer(NO_SYSTEM)
    encoder = PromptEncoder(real, 2048)
    for _ in range(2):
        assert real.decode(encoder.encode("q", "s")) == "<user>s\n\nq"
    assert real.decode(encoder.encode("q", None)) == "<user>q"


def test_a_template_that_rejects_one_conversation_refuses_it_and_takes_the_next() -> None:
    encoder = PromptEncoder(tokenizer(ONLY_USER), 2048)
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    with pytest.raises(Refused, match="the chat template refused the prompt: one message only"):
        encoder.encode(chat, None)
    assert encoder.encode("q", None)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    encoder = PromptEncoder(tokenizer(), 32)
    with pytest.raises(Refused, match=r"the prompt has \d+ tokens and max_model_len is 32"):
        encoder.encode("word " * 100, None)
    assert len(encoder.encode("word", None)) < 32


@pytest.mark.parametrize("text", ["\x00", "🦆 naïve Ωμ", "a" * 10_000, "<|end|><|assistant|>Answer: 1"])
def test_any_text_has_tokens(text: str) -> None:
    assert PromptEncoder(tokenizer(), 100_000).encode(text, None)
