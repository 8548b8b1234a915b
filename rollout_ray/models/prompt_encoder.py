"""Turn a conversation into prompt tokens with the model's own tokenizer and chat template.

Invariant: text stays text. A message with the words of a special token, such as `<|im_end|>`, gets their letters and
never the token, so it cannot end its turn or begin another. Only rendered prompts are exempt.
This also handles templates that are missing, take no system message, leave a message out, or begin the model's thought.
prompt_wording.py chooses the wording.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rollout_ray.config.arms import chat_messages, problem_text, raw_text, without_system_role
from rollout_ray.config.templates import TEMPLATE_ERRORS, stored_template, variables_of
from rollout_ray.core.errors import ConfigError, Refused
from rollout_ray.core.records import Arm, Message, Prompt
from rollout_ray.models.message_values import as_parts, mapped, mistral_errors
from rollout_ray.models.prompt_wording import choose_wording
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.models.special_tokens import CUT, Marks, hidden_tokens, unforgeable_tokens

log = logging.getLogger(__name__)

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

    Attributes:
        template: The given chat template, or None.
        has_template: Whether a chat template or a chat format in code words conversations.
        hidden: Ids of the tokens that the text of an output does not show, by their names.
        special: Names of the tokens that no text may become.
        system_refusal: Why the chat template takes no system message; None if it takes one.
        wording: How prompts are worded now.
    """

    def __init__(self, tokenizer: Any, max_model_len: int, chat_template: str | None = None) -> None:
        self._tokenizer, self.template = tokenizer, chat_template
        self._max_model_len = max_model_len
        module = type(tokenizer).apply_chat_template.__module__
        self._errors: tuple[type[Exception], ...] = (*TEMPLATE_ERRORS, *mistral_errors(tokenizer))
        self._gives_tokens = len(self._errors) > len(TEMPLATE_ERRORS)
        of_vllm = module.startswith("vllm.tokenizers.") and module != "vllm.tokenizers.hf"
        self._in_code = self._gives_tokens or of_vllm
        self.has_template = self._in_code or bool(chat_template or getattr(tokenizer, "chat_template", None))
        self.wording = choose_wording(None, self.has_template, None)
        self._first: Prompt = QUESTION
        self._longest_token = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self._parts = False
        jinja = self.has_template and not self._gives_tokens
        self._parts = jinja and not self._shows(QUESTION) and self._shows(as_parts(QUESTION))
        self.hidden = hidden_tokens(tokenizer)
        self.special = self._find_special()
        self._marks = Marks(self.special)
        self.system_refusal = self._find_refusal() if self.has_template else None

    @classmethod
    def of(cls, run: ResolvedRun, tokenizer: Any, max_model_len: int) -> PromptEncoder:
        """Return the encoder of a run, with the template of its config or else of the tokenizer's folder."""
        template = run.config.model.chat_template
        if template is None and getattr(tokenizer, "chat_template", "in code") is None:
            template = stored_template(run.tokenizer_path)
        return cls(tokenizer, max_model_len, template)

    def begin(self, run: ResolvedRun) -> None:
        """Word prompts as a run asks for from now on.

        Raises:
            ConfigError: The tokenizer cannot word prompts so, or an arm does not fit the chat template.
        """
        self.wording = choose_wording(run.config.model.prompt_style, self.has_template, run.config.data.prompt_template)
        self._first = QUESTION if run.examples.first is None else run.examples.first
        self.check(run.arms)

    def check(self, arms: Sequence[Arm]) -> None:
        """Raise ConfigError if an arm gives the chat template a variable that it does not read.

        It also raises ConfigError if this tokenizer cannot use the given template.
        """
        if self._in_code and self.template:
            raise ConfigError(
                "chat_template cannot take the place of this tokenizer's chat format, which is no template; leave it out, "
                "or give --extra tokenizer_mode=hf if the folder has a tokenizer.json"
            )
        given = {name for arm in arms for name in arm.chat_template_kwargs}
        if not given or (self._in_code and given <= IN_CODE):
            return
        if self.wording != "chat":
            raise ConfigError("no chat template reads chat_template_kwargs; leave them out, or give chat_template")
        known = set(IN_CODE) if self._in_code else variables_of(self.template or self._tokenizer.get_chat_template())
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
        if self.wording == "rendered":
            text = raw_text(prompt, None)
            self._refuse_hopeless(len(text))
            return self._fits(list(self._tokenizer.encode(text, add_special_tokens=False)))
        if self.wording != "chat":
            return self._fits(self._tokens_of_plain(self._bare_text(prompt, arm)))
        messages = self._conversation(prompt, arm)
        try:
            if self._gives_tokens:
                return self._fits(self._tokens_of_chat(messages, arm.chat_template_kwargs))
            text = self._render(messages, arm.chat_template_kwargs)
        except self._errors as error:
            raise Refused(f"the chat template refused the prompt: {error}") from error
        return self._fits(self._tokens(text))

    def bos(self, arm: Arm) -> str | None:
        """Return the tokens that the tokenizer puts before every text and the chat template does not; None if it does."""
        before = [] if self._gives_tokens else self.frame()[0]
        try:
            if not before or self.encode(QUESTION, arm)[: len(before)] == before:
                return None
        except Refused:
            return None
        return self.text_of(before)

    def text_of(self, tokens: list[int]) -> str:
        """Return the text of tokens, special ones among them."""
        text: str = self._tokenizer.decode(tokens)
        return text

    def pieces(self, tokens: list[int]) -> list[tuple[int, str, bool]]:
        """Return each token with its text, and whether it is one that no text of a question may become."""
        texts = [self.text_of([token]) for token in tokens]
        return [(token, text, text in self.special) for token, text in zip(tokens, texts, strict=True)]

    def opening(self, arm: Arm) -> str:
        """Return the tag with which a prompt begins a thought of the model, such as `<think>`; empty if it begins none.

        An output that does not end the thought is nothing but thought. Without a chat template the first prompt decides.
        """
        if self.wording != "chat":
            text = self._bare_text(self._first, arm)
        elif self._gives_tokens:
            return ""
        else:
            try:
                text = self._render(self._conversation(QUESTION, arm), arm.chat_template_kwargs)
            except self._errors:
                return ""
        found = _OPENED.search(text)
        return found.group() if found else ""

    def _bare_text(self, prompt: Prompt, arm: Arm) -> str:
        """Return the prompt without a chat template."""
        return (problem_text if self.wording == "problem" else raw_text)(prompt, arm.system_prompt)

    def _conversation(self, prompt: Prompt, arm: Arm) -> list[Message]:
        """Return the messages that the template gets for the arm's question."""
        messages = chat_messages(prompt, arm.system_prompt)
        return messages if self.system_refusal is None else without_system_role(messages)

    def _shows(self, content: Any) -> bool:
        """Return whether the template shows the question in a message of this content.

        Some templates of models that take pictures read a text only if it is one of several parts.
        """
        try:
            return QUESTION in self._templated([{"role": "user", "content": content}], add_generation_prompt=True)
        except TEMPLATE_ERRORS:
            return False

    def _find_refusal(self) -> str | None:
        """Return why the template takes no system message; None if it takes one. The text of a row does not decide."""
        chat: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        try:
            if self._gives_tokens:
                self._tokens_of_chat(chat, NO_VARIABLES)
            else:
                self._render(chat)
        except self._errors as error:
            return str(error)
        return None

    def _render(self, messages: list[Message], variables: Mapping[str, Any] = NO_VARIABLES) -> str:
        """Return the text of the conversation, with marks inside special tokens that are text of a message.

        Raises:
            ValueError: The template silently leaves a message out.
        """
        marked: list[Any] = [{**mapped(message, self._marked), "role": message["role"]} for message in messages]
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
            messages = [{**message, "content": as_parts(message["content"])} for message in messages]
        # The template is an argument, because vLLM's tokenizer is a pool of copies that would not have it.
        text: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return text

    def _marked(self, text: str) -> str:
        """Return the text with a mark inside every special token. Raise Refused if it is too long or holds a mark."""
        self._refuse_hopeless(len(text))
        return self._marks.mark(text)

    def _tokens_of_chat(self, messages: list[Message], variables: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a conversation from a tokenizer that gives no text, and checks its input itself."""
        self._refuse_hopeless(sum(len(str(message["content"])) for message in messages))
        chat = [dict(message) for message in messages]
        return list(self._tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, **variables))

    def _tokens(self, rendered: str) -> list[int]:
        """Return the token ids of a rendered template, which has its own special tokens."""
        return [t for chunk in rendered.split(CUT) for t in self._tokenizer.encode(chunk, add_special_tokens=False)]

    def _tokens_of_plain(self, text: str) -> list[int]:
        """Return the token ids of a bare text, between the tokens that the tokenizer puts around every text."""
        cut = self._marked(text)
        if CUT not in cut:
            return list(self._tokenizer.encode(text))
        before, after = self.frame()
        return [*before, *self._tokens(cut), *after]

    def frame(self) -> tuple[list[int], list[int]]:
        """Return the tokens that the tokenizer puts before and after every text."""
        framed, bare = self._tokenizer.encode("x"), self._tokenizer.encode("x", add_special_tokens=False)
        before = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
        return framed[:before], framed[before + len(bare) :]

    def _find_special(self) -> frozenset[str]:
        """Return the tokens that no text may become: special tokens, and added ones that frame a turn."""
        frame = ""
        if self.has_template and not self._gives_tokens:
            talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
            try:
                frame = self._templated(talk, add_generation_prompt=False)
            except TEMPLATE_ERRORS as error:
                log.debug("the chat template shows no whole conversation: %s", error)
        return unforgeable_tokens(self._tokenizer, frame)

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
