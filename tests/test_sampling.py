"""What an arm asks of vLLM's sampler and of the chat template reaches them, or is refused: real vLLM on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from transformers import AutoTokenizer

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Completion, Question
from rollout_ray.models.paths import model_folder
from rollout_ray.models.resolved_run import resolve
from rollout_ray.scoring.extraction import extract_answer
from tests.conftest import demo_rows
from tests.test_engine import exchange_all, request, start

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}Think of nothing.\n{% endif %}{{ begin }}"
)
THINK_END = "</think>"
QUESTIONS = [Question(f"q{i}", row["prompt"], None) for i, row in enumerate(demo_rows(4))]


def config(arms: list[dict[str, Any]], model: dict[str, Any] | None = None, **sampling: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "arms": {"arm_list": arms},
            "engine": {"max_model_len": 512},
            "model": {"chat_template": TEMPLATE, **(model or {})},
            "sampling": {"max_tokens": 40, **sampling},
        }
    )


@pytest.fixture(scope="module")
def engine(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its tokenizer has `</think>` as a special token, in the place of the token for padding."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (Path(model_folder("demo")) / name).read_text()
        (folder / name).write_text(text.replace("<|pad|>", THINK_END))
    actor = start(config([{"name": "a"}], {"tokenizer_path": str(folder)}))
    ray.get(actor.start.remote())
    yield actor
    ray.kill(actor)


def draw(engine: Any, cfg: RunConfig) -> list[tuple[Completion, ...]]:
    """The completions of each question, in the order of the arms."""
    ray.get(engine.begin.remote(resolve(cfg)))
    answers = exchange_all(engine, [request(number, question, cfg) for number, question in enumerate(QUESTIONS)])
    return [answers[number] for number in range(len(QUESTIONS))]


def test_an_arm_s_own_parameters_beat_the_run_s(engine: Any) -> None:
    """Of tokens at least as likely as the likeliest only this one is left: min_p 1 is greedy at any temperature."""
    arms = [
        {"name": "greedy", "temperature": 0.0},
        {"name": "only_the_likeliest", "temperature": 1.5, "top_p": 1.0},
        {"name": "any", "temperature": 1.5, "top_p": 1.0, "extra_sampling": {"min_p": 0.0}},
    ]
    drawn = draw(engine, config(arms, extra_sampling={"min_p": 1.0}))
    assert all(greedy.full_text == likeliest.full_text for greedy, likeliest, _ in drawn)
    assert any(greedy.full_text != other.full_text for greedy, _, other in drawn)


def test_stop_tokens_end_an_output_with_the_text_that_vllm_gives(engine: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("demo"))
    (stop,) = tokenizer.encode("2", add_special_tokens=False)[-1:]
    given = {"stop_token_ids": [stop]}
    arms = [{"name": "a", "temperature": 0.0}]
    free = draw(engine, config(arms))
    ours, vllms = (
        draw(engine, config(arms, extra_sampling=given | more)) for more in ({}, {"spaces_between_special_tokens": True})
    )
    assert [c.full_text for (c,) in ours] == [c.full_text for (c,) in vllms]
    ended = [(c, whole) for (c,), (whole,) in zip(ours, free, strict=True) if c.num_tokens < whole.num_tokens]
    assert ended and all(c.finish_reason == "stop" and whole.full_text.startswith(c.full_text) for c, whole in ended)


def test_a_stop_string_that_is_a_special_token_ends_an_output(engine: Any) -> None:
    """An arm's own stop strings count, and the text never shows a special token."""
    arms = [
        {"name": "token", "temperature": 0.0, "stop": ["<|end|>"]},
        {"name": "string", "temperature": 0.0, "stop": ["Answer"]},
        {"name": "none", "temperature": 0.0},
    ]
    drawn = draw(engine, config(arms, ignore_eos=True, max_tokens=200, stop=[]))
    free = draw(engine, config([{"name": "a", "temperature": 0.0}], max_tokens=200))
    assert [token.full_text for token, _, _ in drawn] == [whole.full_text for (whole,) in free]
    assert {none.finish_reason for _, _, none in drawn} == {"length"}
    assert all("Answer" not in string.full_text for _, string, _ in drawn)


def test_a_special_token_that_grading_reads_stays_in_the_text(engine: Any) -> None:
    """Whoever decodes: vLLM if an arm has stop strings, else this package."""
    arm = {"name": "a", "max_tokens": 2, "extra_sampling": {"logit_bias": {"0": 100}}}
    for stop in ([], ["Answer"]):
        drawn = draw(engine, config([arm], stop=stop))
        assert {c.full_text for (c,) in drawn} == {2 * THINK_END}
    drawn = draw(engine, config([arm], stop=[THINK_END]))
    assert {(c.full_text, c.num_tokens) for (c,) in drawn} == {("", 1)}


def test_parameters_that_change_the_text_do(engine: Any) -> None:
    arms = [{"name": "a", "temperature": 0.0}]
    without = draw(engine, config(arms, stop=["Answer"], max_tokens=200))
    with_it = draw(
        engine, config(arms, stop=["Answer"], max_tokens=200, extra_sampling={"include_stop_str_in_output": True})
    )
    stopped = [(a, b) for (a,), (b,) in zip(without, with_it, strict=True) if a.num_tokens < 200]
    assert stopped and all(b.full_text == f"{a.full_text}Answer" for a, b in stopped)


def test_token_ids_may_be_names_as_in_json(engine: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder("demo"))
    (token,) = tokenizer.encode("2", add_special_tokens=False)[-1:]
    drawn = draw(engine, config([{"name": "a", "max_tokens": 5}], extra_sampling={"logit_bias": {str(token): 100}}))
    assert {c.full_text.strip() for (c,) in drawn} == {"22222"}


def test_an_output_can_be_kept_to_a_choice(engine: Any) -> None:
    arms = [{"name": "a", "extra_sampling": {"structured_outputs": {"choice": ["yes", "no"]}}}, {"name": "free"}]
    drawn = draw(engine, config(arms))
    assert {a.full_text for a, _ in drawn} <= {"yes", "no"} and not {b.full_text for _, b in drawn} & {"yes", "no"}


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"extra_sampling": {"min_q": 0.1}}, "vLLM refuses extra_sampling: min_q 0.1 of the arm odd: .*min_q"),
        ({"extra_sampling": {"min_p": 3}}, "of the arm odd: min_p must be in"),
        ({"extra_sampling": {"min_p": "much"}}, "of the arm odd: "),
        ({"extra_sampling": {"min_p": 0.1, "stop_token_ids": [10**6]}}, r"extra_sampling: stop_token_ids \[1000000\] of"),
        ({"extra_sampling": {"logit_bias": {"1000000": 1}}}, r"extra_sampling: logit_bias \{'1000000': 1\} of the arm odd"),
        ({"extra_sampling": {"allowed_token_ids": []}}, r"extra_sampling: allowed_token_ids \[\] of the arm odd: .*empty"),
        ({"extra_sampling": {"structured_outputs": {"grammar": "root ::= ("}}}, "structured_outputs .* of the arm odd"),
        ({"extra_sampling": {"structured_outputs": {"regex": "(["}}}, "structured_outputs .* of the arm odd"),
        ({"temperature": 3.0}, "of the arm odd: temperature must be in"),
        (
            {"chat_template_kwargs": {"enable_thinkng": False}},
            "reads no variable enable_thinkng .* begin, enable_thinking, messages",
        ),
    ],
)
def test_what_would_be_refused_or_ignored_ends_the_run_before_anything_is_drawn(
    engine: Any, arm: dict[str, Any], message: str
) -> None:
    cfg = config([{"name": "fine"}, {"name": "odd", **arm}])
    with pytest.raises(RayTaskError, match=message) as raised:
        ray.get(engine.begin.remote(resolve(cfg)))
    assert isinstance(raised.value.cause, ConfigError)
    assert draw(engine, config([{"name": "fine"}]))


def test_an_output_that_only_goes_on_a_thought_of_the_prompt_begins_with_its_tag(local_ray: None, engine: Any) -> None:
    """Else the last number of an unfinished thought would be its answer."""
    variables = {"chat_template_kwargs": {"begin": "<think>\n"}}
    arms = [{"name": "thinking", **variables, "max_tokens": 5}, {"name": "plain", "max_tokens": 5}]
    for thinking, plain in draw(engine, config(arms)):
        assert thinking.full_text.startswith("<think>\n") and not plain.full_text.startswith("<think>")
        assert extract_answer(thinking.full_text).answer is None and thinking.num_tokens == plain.num_tokens == 5
    choice = {"extra_sampling": {"structured_outputs": {"choice": ["2</think>\nAnswer: 4"]}}}
    for (ended,) in draw(engine, config([{"name": "ended", **variables, **choice}])):
        assert ended.full_text == "2</think>\nAnswer: 4"


def test_variables_of_the_chat_template_are_an_arm_s_or_the_run_s(engine: Any) -> None:
    arms = [
        {"name": "as_the_run"},
        {"name": "thinking", "chat_template_kwargs": {"enable_thinking": True}},
        {"name": "as_the_run_too", "temperature": 0.5},
    ]
    drawn = draw(engine, config(arms, {"chat_template_kwargs": {"enable_thinking": False}}))
    tokenizer = AutoTokenizer.from_pretrained(model_folder("demo"))
    for question, completions in zip(QUESTIONS, drawn, strict=True):
        texts = (f"{question.prompt}\n{more}" for more in ("Think of nothing.\n", ""))
        short, long = (len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        assert [c.num_prompt_tokens for c in completions] == [short, short, long]  # equal wordings stand together
