"""Turn a conversation into prompt tokens with the model's own tokenizer and chat template.

Invariant: text stays text. A message with the words of a special token, such as `<|im_end|>`, gets their letters and
never the token, so it cannot end its turn or begin another. This also handles templates that are missing, take no
system message, leave a message out, or begin the model's thought.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rollout_ray.config.arms import chat_messages, plain_text, without_system_role
from rollout_ray.config.templates import TEMPLATE_ERRORS, variables_of
from rollout_ray.core.errors import ConfigError, Refused
from rollout_ray.core.records import Arm, Message, Prompt

log = logging.getLogger(__name__)

_CUT = "\uf8ff\ue000\uf8ff"  # private characters that mark a cut; no text may hold them in this order

_QUICKLY_TOKENIZED = 1 << 16  # characters
NO_VARIABLES: Mapping[str, Any] = {}
IN_CODE = frozenset(("thinking", "enable_thinking", "reasoning_effort"))  # variables of chat formats that are code
_OPENED = re.compile(r"<think(?:ing)?>\s{0,8}\Z")
QUESTION = "What is 2 + 2?"  # by which a template is tried


class PromptEncoder:
    """Encodes prompts for one tokenizer with transformers' interface.

    Some tokenizers of vLLM write a chat in code. Mistral's gives tokens alone, so no text can become special.

    Args:
        tokenizer: The tokenizer.
        max_model_len: Prompts of as many tokens are refused.
        chat_template: Text of a template that replaces the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, max_model_len: int, chat_template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, chat_template
        self._max_model_len = max_model_len
        module = type(tokenizer).apply_chat_template.__module__
        self._errors: tuple[type[Exception], ...] = (*TEMPLATE_ERRORS, *_mistral_errors(tokenizer))
        self._gives_tokens = len(self._errors) > len(TEMPLATE_ERRORS)
        of_vllm = module.startswith("vllm.tokenizers.") and module != "vllm.tokenizers.hf"
        self._in_code = self._gives_tokens or of_vllm
        self._has_template = self._in_code or bool(chat_template or getattr(tokenizer, "chat_template", None))
        self._longest_token = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self._parts = False
        jinja = self._has_template and not self._gives_tokens
        self._parts = jinja and not self._shows(QUESTION) and self._shows(_as_parts(QUESTION))
        self._special = self._find_special()
        self._takes_system = self._has_template and self._find_takes_system()

    def check(self, arms: Sequence[Arm]) -> None:
        """Raise ConfigError if an arm gives the chat template a variable that it does not read.

        It also raises ConfigError if this tokenizer cannot use the given template.
        """
        if self._in_code and self._template:
            raise ConfigError(
                "chat_template cannot take the place of this tokenizer's chat format, which is no template; leave it out, "
                "or give --extra tokenizer_mode=hf if the folder has a tokenizer.json"
            )
        given = {name for arm in arms for name in arm.chat_template_kwargs}
        if not given or (self._in_code and given <= IN_CODE):
            return
        if not self._has_template:
            raise ConfigError(
                "the tokenizer has no chat template to read chat_template_kwargs; leave them out, or give chat_template"
            )
        known = set(IN_CODE) if self._in_code else variables_of(self._template or self._tokenizer.get_chat_template())
        if unread := sorted(given - known):
            raise ConfigError(
                f"the chat template reads no variable {', '.join(unread)} of chat_template_kwargs; it reads "
                f"{', '.join(sorted(known))}"
            )

    def encode(self, prompt: Prompt, arm: Arm) -> list[int]:
        """Return the token ids of the prompt as the arm asks it, under the chat template if there is one.

        Raises:
            Refused: The template rejects the conversation, or the prompt is empty or too long.
        """
        if not self._has_template:
            return self._fits(self._tokens_of_plain(plain_text(prompt, arm.system_prompt)))
        messages = self._conversation(prompt, arm)
        try:
            if self._gives_tokens:
                return self._fits(self._tokens_of_chat(messages, arm.chat_template_kwargs))
            text = self._render(messages, arm.chat_template_kwargs)
        except self._errors as error:
            raise Refused(f"the chat template refused the prompt: {error}") from error
        return self._fits(self._tokens(text))

    def opening(self, arm: Arm) -> str:
        """Return the tag with which the template begins a thought of the model, such as `<think>`; empty if it begins none.

        An output that does not end the thought is nothing but thought.
        """
        if not self._has_template or self._gives_tokens:
            return ""
        try:
            text = self._render(self._conversation(QUESTION, arm), arm.chat_template_kwargs)
        except self._errors:
            return ""
        found = _OPENED.search(text)
        return found.group() if found else ""

    def _conversation(self, prompt: Prompt, arm: Arm) -> list[Message]:
        """Return the messages that the template gets for the arm's question."""
        messages = chat_messages(prompt, arm.system_prompt)
        return messages if self._takes_system else without_system_role(messages)

    def _shows(self, content: Any) -> bool:
        """Return whether the template shows the question in a message of this content.

        Some templates of models that take pictures read a text only if it is one of several parts.
        """
        try:
            return QUESTION in self._templated([{"role": "user", "content": content}], add_generation_prompt=True)
        except TEMPLATE_ERRORS:
            return False

    def _find_takes_system(self) -> bool:
        """Return whether the template takes a system message. A plain conversation decides, not the text of a row."""
        chat: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        try:
            if self._gives_tokens:
                self._tokens_of_chat(chat, NO_VARIABLES)
            else:
                self._render(chat)
        except self._errors as error:
            log.warning("the chat template takes no system message (%s); it opens the user's turn instead", error)
            return False
        return True

    def _render(self, messages: list[Message], variables: Mapping[str, Any] = NO_VARIABLES) -> str:
        """Return the text of the conversation, with marks inside special tokens that are text of a message.

        Raises:
            ValueError: The template silently leaves a message out.
        """
        marked: list[Any] = [{**_mapped(message, self._cut), "role": message["role"]} for message in messages]
        text = self._templated(marked, variables, add_generation_prompt=True)
        for number, message in enumerate(marked):
            # An earlier thought, or a tool's answer, may be dropped or rewritten on purpose.
            if message["role"] in ("system", "developer", "user") and message["content"].strip() not in text:
                raise ValueError(f"it leaves out message {number}, of the role {message['role']}")
        return text

    def _templated(
        self, messages: list[Any], variables: Mapping[str, Any] = NO_VARIABLES, *, add_generation_prompt: bool
    ) -> str:
        if self._parts:
            messages = [{**message, "content": _as_parts(message["content"])} for message in messages]
        # The template is an argument, because vLLM's tokenizer is a pool of copies that would not have it.
        text: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return text

    def _cut(self, text: str) -> str:
        """Return the text with a mark inside every special token. No whole one lies between two marks."""
        if _CUT in text:
            raise Refused("the prompt holds the private characters U+F8FF U+E000 U+F8FF, which mark special tokens here")
        self._refuse_hopeless(len(text))
        chunks, begin = [], 0
        while self._special and (found := self._special.search(text, begin)):
            chunks.append(text[begin : found.start() + 1])
            begin = found.start() + 1
        return _CUT.join([*chunks, text[begin:]])

    def _tokens_of_chat(self, messages: list[Message], variables: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a conversation from a tokenizer that gives no text, and checks its input itself."""
        self._refuse_hopeless(sum(len(str(message["content"])) for message in messages))
        chat = [dict(message) for message in messages]
        return list(self._tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, **variables))

    def _tokens(self, rendered: str) -> list[int]:
        """Return the token ids of a rendered template, which has its own special tokens."""
        return [t for chunk in rendered.split(_CUT) for t in self._tokenizer.encode(chunk, add_special_tokens=False)]

    def _tokens_of_plain(self, text: str) -> list[int]:
        """Return the token ids of a bare text, between the tokens that the tokenizer puts around every text."""
        cut = self._cut(text)
        if _CUT not in cut:
            return list(self._tokenizer.encode(text))
        framed, bare = self._tokenizer.encode("x"), self._tokenizer.encode("x", add_special_tokens=False)
        before = next(n for n in range(len(framed)) if framed[n : n + len(bare)] == bare)
        return [*framed[:before], *self._tokens(cut), *framed[before + len(bare) :]]

    def _find_special(self) -> re.Pattern[str] | None:
        """Return a pattern of the tokens that no text may become: special tokens, and added ones that frame a turn."""
        frame = ""
        if self._has_template and not self._gives_tokens:
            talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
            try:
                frame = self._templated(talk, add_generation_prompt=False)
            except TEMPLATE_ERRORS as error:
                log.debug("the chat template shows no whole conversation: %s", error)
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        # Some tokenizers have white space among the added tokens; it frames nothing.
        framing = {t.content for t in added if t.special or (t.content.strip() and t.content in frame)}
        names = framing | set(self._tokenizer.all_special_tokens)
        if not names:
            return None
        return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))

    def _refuse_hopeless(self, characters: int) -> None:
        """Refuse a text that is too long for any tokens of the model. To tokenize ten megabytes takes 20 s."""
        if characters > max(_QUICKLY_TOKENIZED, self._max_model_len * self._longest_token):
            raise Refused(f"the prompt has {characters} characters, too many for max_model_len {self._max_model_len}")

    def _fits(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise Refused("the prompt has no tokens")
        if len(tokens) >= self._max_model_len:
            raise Refused(f"the prompt has {len(tokens)} tokens and max_model_len is {self._max_model_len}")
        return tokens


def _mistral_errors(tokenizer: Any) -> tuple[type[Exception], ...]:
    """Return the errors of Mistral's own tokenizer on a conversation that it refuses; none for other tokenizers."""
    if not getattr(tokenizer, "IS_MISTRAL_TOKENIZER", False):
        return ()
    from mistral_common.exceptions import MistralCommonException

    return (MistralCommonException,)


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _mapped(value: Any, change: Any) -> Any:
    """Return the value with every string in it changed, but for the keys of dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return value
