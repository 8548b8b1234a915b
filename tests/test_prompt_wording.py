"""How a run words its prompts, what it says of that, and which prompts it refuses. Real tokenizers, no engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, AutoTokenizer

from rollout_ray.api.show_prompt import show_prompt
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Question
from rollout_ray.models.paths import model_folder
from rollout_ray.models.prompt_encoder import PromptEncoder
from rollout_ray.models.prompt_report import PromptReport, report_prompts
from rollout_ray.models.prompt_wording import Examples, refuse_rendered, wording_identity
from rollout_ray.models.resolved_run import ResolvedRun, resolve

RENDERED = "<|user|>What is 2 + 2?<|end|><|assistant|>"
FEW_SHOT = "Q: What is 1 + 1?\nA: 2\n\nQ: {{ prompt }}\nA:"


def run_of(prompts: list[Any], model: dict[str, Any] | None = None, **sections: Any) -> ResolvedRun:
    """A run over these prompts under one arm without a system prompt."""
    cfg = RunConfig.model_validate({"arms": {"arm_set": "samples"}, "model": model or {}, **sections})
    questions = [Question(str(number), prompt, None) for number, prompt in enumerate(prompts)]
    return replace(resolve(cfg), examples=Examples.of(questions))


def begun(run: ResolvedRun, template: str | None = "own", tokenizer: Any = None) -> tuple[PromptEncoder, PromptReport]:
    real = tokenizer or AutoTokenizer.from_pretrained(model_folder("demo"))
    if template != "own":
        real.chat_template = template
    encoder = PromptEncoder(real, 2048)
    encoder.begin(run)
    return encoder, report_prompts(encoder, run)


def asked(run: ResolvedRun, template: str | None = "own") -> str:
    """The text of the first prompt as the model is sent it."""
    _, report = begun(run, template)
    ((_, text),) = report.first
    return text


def test_the_text_of_a_prompt_template_is_the_prompt_of_a_base_model() -> None:
    few_shot = {"prompt_template": FEW_SHOT}
    assert asked(run_of([FEW_SHOT], data=few_shot), None) == FEW_SHOT
    assert asked(run_of(["2 + 2?"]), None) == "Problem: 2 + 2?\nSolution:"
    assert asked(run_of(["2 + 2?"], {"prompt_style": "raw"}), None) == "2 + 2?"
    assert asked(run_of(["2 + 2?"], {"prompt_style": "problem"}, data=few_shot), None) == "Problem: 2 + 2?\nSolution:"
    assert asked(run_of(["2 + 2?"], data=few_shot)) == "<|user|>2 + 2?<|end|><|assistant|>"
    assert asked(run_of(["2 + 2?"], {"prompt_style": "raw"})) == "2 + 2?"


@pytest.mark.parametrize(
    ("model", "template", "note"),
    [
        ({}, "own", "prompts are worded by the model's chat template"),
        ({"chat_template": "{{ messages[0].content }}"}, "own", "prompts are worded by the given chat template"),
        ({}, None, "the tokenizer has no chat template: prompts read 'Problem: ... Solution:'"),
        ({"prompt_style": "raw"}, "own", "prompts are sent as they stand"),
        ({"prompt_style": "rendered"}, "own", "prompts are sent as they stand, and special tokens in them are tokens"),
    ],
)
def test_the_wording_is_named(model: dict[str, Any], template: str | None, note: str) -> None:
    _, report = begun(run_of(["2 + 2?"], model), template)
    assert report.notes[0].startswith(note) and not report.warnings


def test_a_style_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt_style is chat, but the tokenizer has no chat template"):
        begun(run_of(["q"], {"prompt_style": "chat"}), None)
    with pytest.raises(ConfigError, match="prompt_style raw uses no chat template; leave out chat_template"):
        run_of(["q"], {"prompt_style": "raw", "chat_template": "{{ messages }}"})
    with pytest.raises(ConfigError, match="the arm wolfram_0 has a system prompt; give --arm_set samples"):
        run_of(["q"], {"prompt_style": "rendered"}, arms={"arm_set": "regime-w"})
    with pytest.raises(ConfigError, match="no chat template reads chat_template_kwargs"):
        begun(run_of(["q"], {"prompt_style": "raw", "chat_template_kwargs": {"enable_thinking": True}}))


def test_conversations_that_lose_their_roles_are_said() -> None:
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    run = run_of([chat])
    assert not begun(run)[1].warnings
    (warning,) = begun(run, None)[1].warnings
    assert "their roles are lost. Give --chat_template" in warning


def test_a_chat_template_without_the_tokenizers_first_token_is_said() -> None:
    real = AutoTokenizer.from_pretrained(model_folder("demo"))
    real.add_special_tokens({"bos_token": "<s>"})
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", real.convert_tokens_to_ids("<s>"))])
    real.backend_tokenizer.post_processor = template
    own = real.chat_template
    (warning,) = begun(run_of(["2 + 2?"]), tokenizer=real)[1].warnings
    assert warning.startswith(
        "the tokenizer begins every text with <s>, and the chat template does not; put {{ bos_token }}"
    )
    assert not begun(run_of(["2 + 2?"]), "{{ bos_token }}" + own, real)[1].warnings
    report = begun(run_of(["2 + 2?"], {"prompt_style": "raw"}), tokenizer=real)[1]
    assert report.first[0][1] == "<s>2 + 2?" and not report.warnings


def test_a_template_that_takes_no_system_prompt_is_said_where_an_arm_has_one() -> None:
    template = "{{ messages[0]['content'] if messages|length == 1 else raise_exception('one message only') }}"
    assert not begun(run_of(["q"]), template)[1].warnings
    (warning,) = begun(run_of(["q"], arms={"arm_set": "regime-w"}), template)[1].warnings
    assert "takes no system message (one message only)" in warning


# Prompts that are rendered already


def test_rendered_prompts_are_refused_with_the_remedy_and_passed_through_by_name() -> None:
    run = run_of([RENDERED, f"\n{RENDERED}"])
    with pytest.raises(
        ConfigError, match=r"all of the first 2 prompts begin with .* as <\|user\|>.*--prompt_style rendered"
    ):
        begun(run)
    with pytest.raises(ConfigError, match="--prompt_style rendered"):
        begun(run_of([({"role": "user", "content": RENDERED},)] * 2))
    encoder, report = begun(run_of([RENDERED] * 2, {"prompt_style": "rendered"}))
    chat = PromptEncoder(AutoTokenizer.from_pretrained(model_folder("demo")), 2048)
    assert encoder.encode(RENDERED, run.arms[0]) == chat.encode("What is 2 + 2?", run.arms[0])
    assert report.first[0][1] == RENDERED
    with pytest.raises(ConfigError, match="rendered takes prompts that are text, and there are conversations"):
        begun(run_of([({"role": "user", "content": "q"},)], {"prompt_style": "rendered"}))


def test_a_few_such_rows_stay_letters() -> None:
    encoder, report = begun(run_of([RENDERED, "2 + 2?"]))
    assert not report.warnings
    assert encoder.encode(RENDERED, run_of([]).arms[0]).count(2) == 1  # the template's own <|user|>
    (warning,) = begun(run_of([RENDERED]))[1].warnings
    assert warning.startswith("the prompt begins with the special token <|user|>, which is encoded as letters")


def test_rendered_prompts_are_refused_before_an_engine_starts() -> None:
    run = run_of([f"{RENDERED}{number}" for number in range(3)])
    with pytest.raises(ConfigError, match="all of the first 3 prompts begin with a special token of the model"):
        refuse_rendered(run.config, run.examples, run.tokenizer_path)
    run = run_of(["[1, 2] sorted?", "<b> is what?"])
    refuse_rendered(run.config, run.examples, run.tokenizer_path)


def test_a_thought_that_a_raw_prompt_begins_is_known() -> None:
    run = run_of(["Q: 2 + 2?\nA: <think>\n"], {"prompt_style": "raw"})
    assert begun(run)[0].opening(run.arms[0]) == "<think>\n"


# Run directories of version 0.1.0


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer of the demo model without its chat template."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(model_folder("demo"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("style", "few_shot", "of_base", "of_chat", "of_hub"),
    [
        (None, False, None, None, None),
        (None, True, "raw", None, "by the tokenizer"),
        ("chat", True, None, None, None),
        ("problem", True, None, "problem", "problem"),
        ("raw", False, "raw", "raw", "raw"),
    ],
)
def test_only_another_wording_is_another_run(
    style: str | None, few_shot: bool, of_base: str | None, of_chat: str | None, of_hub: str | None, base_model: str
) -> None:
    cfg = RunConfig.model_validate(
        {"model": {"prompt_style": style}, "data": {"prompt_template": FEW_SHOT if few_shot else None}}
    )
    folders = (base_model, model_folder("demo"), "someone/model")
    assert [wording_identity(cfg, folder) for folder in folders] == [of_base, of_chat, of_hub]


def test_new_fields_at_their_defaults_leave_the_identity_as_it_was() -> None:
    cfg = RunConfig.model_validate({"arms": {"arm_list": [{"name": "a"}]}})
    identity = resolve(cfg).identity
    assert "model.prompt_style" not in identity and "stop" not in identity["arms.arm_list"][0]
    own = RunConfig.model_validate({"arms": {"arm_list": [{"name": "a", "stop": ["x", "<|end|>"]}]}})
    assert own.identity()["arms.arm_list"][0]["stop"] == ["x", "<|end|>"]
    assert resolve(own).identity["sampling.stop_tokens"] == ["<|end|>"]
    json.dumps(identity)


# Special tokens that grading reads


def test_tags_that_grading_reads_stay_in_the_text() -> None:
    from rollout_ray.models.special_tokens import hidden_tokens, read_by_grading, showing

    real = AutoTokenizer.from_pretrained(model_folder("demo"))
    real.add_tokens([AddedToken(name, special=True) for name in ("</think>", "<answer>", "<|other|>")])
    shown = read_by_grading(hidden_tokens(real))
    assert sorted(shown) == ["</think>", "<answer>"]
    tokens = real.encode("2 + 2</think><|other|><answer>4<|end|>", add_special_tokens=False)
    fast = showing(real.backend_tokenizer, shown)
    assert fast.decode(tokens, skip_special_tokens=True) == "2 + 2</think><answer>4"
    assert real.backend_tokenizer.decode(tokens, skip_special_tokens=True) == "2 + 24"


# rollout show-prompt


def test_what_the_model_is_sent_is_shown(base_model: str) -> None:
    rows = [{"prompt": "2 + 2?"}, {"prompt": None}]
    arms = [{"name": "plain"}, {"name": "asked", "system_prompt": "Be brief."}, {"name": "warm", "temperature": 0.5}]
    sections = {"arms": {"arm_list": arms}, "sampling": {"stop": ["\n\n", "<|end|>"]}}
    chat = list(show_prompt(RunConfig.model_validate(sections), rows, 0, None))
    assert "prompts are worded by the model's chat template" in chat
    assert "outputs end at the stop strings '\\n\\n'" in chat and "outputs end at the special tokens <|end|>" in chat
    assert "<|user|>2 + 2?<|end|><|assistant|>" in chat and any(
        line.endswith("4 <|end|>  3 <|assistant|>") for line in chat
    )
    assert [line.partition(":")[0] for line in chat if line.startswith("arm")] == ["arms plain, warm", "arm asked"]
    base = RunConfig.model_validate({**sections, "model": {"model_path": base_model}})
    assert "Be brief.\n\nProblem: 2 + 2?\nSolution:" in list(show_prompt(base, rows, 0, "asked"))
    assert "The row becomes an error row: the prompt is null" in list(show_prompt(base, rows, 1, "asked"))[-1]
    with pytest.raises(ConfigError, match="there is no arm x; give one of plain, asked, warm"):
        list(show_prompt(base, rows, 0, "x"))
    with pytest.raises(ConfigError, match=r"row 2 is not there: .* has 2 rows"):
        list(show_prompt(base, rows, 2))
