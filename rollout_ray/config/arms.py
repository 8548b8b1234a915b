"""The arms: prompts and temperatures of the presets, and the messages of an arm and a question.

This knows no tokenizer: an engine turns the messages into tokens.
"""

from __future__ import annotations

from rollout_ray.config.arm_schema import ArmConfig
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Arm, Message, Prompt

_LAST_LINE = "Finish with one line of the form Answer: <number>"

WOLFRAM = (
    "Solve the problem in precise, linear, explicit steps. Number the steps, write one calculation in each, and leave "
    f"out all commentary. {_LAST_LINE}"
)
MAUDLIN = (
    "Solve the problem and reflect on your reasoning as you go. Point out each step that is fragile, say how it could "
    f"go wrong, and check it before you build on it. {_LAST_LINE}"
)
WOLFRAM_REPHRASE = (
    "First restate the problem in your own words. Then solve it in precise, linear, explicit steps without commentary. "
    f"{_LAST_LINE}"
)
MAUDLIN_CF1 = (
    "Assume that your first instinct about this problem is wrong. Look for the trap in it, reason your way around the "
    f"trap, and check each step. {_LAST_LINE}"
)

_TEMPERATURES = (0.2, 0.3, 0.4, 0.5)
_REGIME_W = (
    *(
        ArmConfig(name=f"wolfram_{i}", system_prompt=WOLFRAM, temperature=t, top_p=0.95)
        for i, t in enumerate(_TEMPERATURES)
    ),
    *(
        ArmConfig(name=f"maudlin_{i}", system_prompt=MAUDLIN, temperature=t, top_p=0.90)
        for i, t in enumerate(_TEMPERATURES)
    ),
)
_PROBES = (
    ArmConfig(name="wolfram_standard", system_prompt=WOLFRAM, temperature=0.3, top_p=0.95, probe_role="A"),
    ArmConfig(name="wolfram_rephrase", system_prompt=WOLFRAM_REPHRASE, temperature=0.3, top_p=0.95, probe_role="A'"),
    ArmConfig(name="maudlin_cf1", system_prompt=MAUDLIN_CF1, temperature=0.5, top_p=0.90, probe_role="CF1"),
)
PRESETS: dict[str, tuple[ArmConfig, ...]] = {
    "regime-w": _REGIME_W,
    "regime-w-probes": (*_REGIME_W, *_PROBES),
    "samples": (ArmConfig(name="samples", temperature=1.0, top_p=0.95, samples=8),),
    "greedy": (ArmConfig(name="greedy", temperature=0.0, top_p=1.0),),
}
_REGIME_W_MAX_TOKENS = 1024
_REGIME_W_MAX_MODEL_LEN = 2048
_MAX_TOKENS = 2048


def resolve_arms(config: RunConfig) -> tuple[Arm, ...]:
    """Return the arms of a run with every parameter set.

    A preset arm takes the value of `sampling`, else its own. An arm of `arm_list` takes its own value, else the value of
    `sampling`, else that of the `samples` preset.
    """
    sampling = config.sampling
    given = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "samples": sampling.n_samples,
    }
    fallback = {
        "temperature": 1.0,
        "top_p": 0.95,
        "max_tokens": _REGIME_W_MAX_TOKENS if _is_regime_w(config) else _MAX_TOKENS,
        "samples": 1,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": sampling.stop,
    }
    custom = config.arms.arm_set == "custom"
    arms = config.arms.arm_list if custom else PRESETS[config.arms.arm_set]
    resolved = []
    for arm in arms:
        own = {name: value for name, value in arm.model_dump().items() if value is not None}
        over = {name: value for name, value in given.items() if value is not None}
        settled = fallback | ((over | own) if custom else (own | over))
        settled["extra_sampling"] = {**sampling.extra_sampling, **arm.extra_sampling}
        settled["chat_template_kwargs"] = {**config.model.chat_template_kwargs, **arm.chat_template_kwargs}
        resolved.append(Arm(**{"system_prompt": None, "probe_role": None, "lora_path": config.model.lora_path, **settled}))
    return tuple(resolved)


def default_max_model_len(config: RunConfig) -> int | None:
    """Return the tokens of prompt and output that the arm set is made for. None: the model's own limit."""
    return _REGIME_W_MAX_MODEL_LEN if _is_regime_w(config) else None


def _is_regime_w(config: RunConfig) -> bool:
    return config.arms.arm_set in ("regime-w", "regime-w-probes")


def chat_messages(prompt: Prompt, system_prompt: str | None) -> list[Message]:
    """Return the conversation: the system prompt of the arm, then the question.

    A system message of the question follows the arm's system prompt after a blank line.
    """
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system_prompt is None:
        return messages
    if messages and messages[0]["role"] == "system":
        own = messages.pop(0)["content"]
        system_prompt = f"{system_prompt}\n\n{own}"
    return [{"role": "system", "content": system_prompt}, *messages]


def without_system_role(messages: list[Message]) -> list[Message]:
    """Move the system message to the beginning of the first user message, for templates that refuse system messages.

    Returns the list as it is if there is no system message, or no user message to take it.
    """
    first = next((number for number, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None or messages[0]["role"] != "system":
        return messages
    system, rest = messages[0], messages[1:]
    opened = {**messages[first], "content": f"{system['content']}\n\n{messages[first]['content']}"}
    return [*rest[: first - 1], opened, *rest[first:]]


def raw_text(prompt: Prompt, system_prompt: str | None) -> str:
    """Return the prompt as it stands, without a chat template; messages are joined by blank lines."""
    question = prompt if isinstance(prompt, str) else "\n\n".join(str(m["content"]) for m in prompt)
    return question if system_prompt is None else f"{system_prompt}\n\n{question}"


def problem_text(prompt: Prompt, system_prompt: str | None) -> str:
    """Return the prompt in the words that most base models know from problems and their solutions."""
    return raw_text(f"Problem: {raw_text(prompt, None)}\nSolution:", system_prompt)
