"""Prompt and chat templates of one's own, and the examples in jobs/examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from rollout_ray.api.collect import collect
from rollout_ray.config.arms import chat_messages
from rollout_ray.config.loading import load_config
from rollout_ray.config.schema import DataConfig, Layout, ModelConfig, RunConfig
from rollout_ray.core.errors import ConfigError, DatasetError, LedgerError
from rollout_ray.data.question_set import load_questions
from rollout_ray.export.formats import export
from rollout_ray.models.paths import model_folder
from rollout_ray.results.verify import verify
from tests.conftest import ROOT, demo_rows
from tests.finished_runs import finished

EXAMPLES = ROOT / "jobs" / "examples"
CHOICES = "{{ question }}\n{% for choice in choices %}\n{{ loop.index }}. {{ choice }}\n{% endfor %}\n"


def prompts(rows: Any, template: str, **data: Any) -> list[Any]:
    questions = load_questions(rows, DataConfig(prompt_template=template, **data)).questions()
    return [question.fault or question.prompt for question in questions]


def test_a_prompt_is_made_of_the_columns() -> None:
    rows = [{"question": f"q{n}?", "choices": ["a", "b"][: n + 1], "gold_answer": "1"} for n in range(2)]
    assert prompts(rows, CHOICES, prompt_key="question") == ["q0?\n1. a\n", "q1?\n1. a\n2. b\n"]
    template = "{{ prompt[-1].content }} ({{ prompt | length }})"
    assert prompts([{"prompt": [{"role": "user", "content": "hi"}]}], template) == ["hi (1)"]


@pytest.mark.parametrize(
    ("template", "row", "fault"),
    [
        ("{{ prompt }} {{ hint }}", {"hint": None}, "a value that it prints is null"),
        ("{{ hint * 2 }}", {"hint": None}, "unsupported operand"),
        ("{{ choices[3] }}", {"choices": ["a"]}, "has no element 3"),
        ("{{ hint.__class__ }}", {"hint": "x"}, "unsafe"),
        ("{{ hint if hint else '' }}", {"hint": ""}, "the prompt is empty"),
    ],
)
def test_a_row_that_a_template_fails_on_is_a_fault_of_that_row(template: str, row: dict[str, Any], fault: str) -> None:
    fine = {"hint": 1 if "* 2" in template else "h", "choices": ["a", "b", "c", "d"]}
    table = pa.Table.from_pylist([{"prompt": "p", **row}, {"prompt": "p", **{name: fine[name] for name in row}}])
    first, second = prompts(table, template)
    assert fault in first
    assert ("unsafe" in fault) == (first == second)


def test_bytes_that_are_no_text_are_a_fault_too() -> None:
    table = pa.table({"prompt": ["a", "b"], "hint": pa.array([b"\xff", b"h"], pa.binary()).view(pa.string())})
    assert prompts(table, "{{ prompt }}{{ hint }}")[1] == "bh"
    assert "the column 'hint', which the prompt template names, is not UTF-8" in prompts(table, "{{ prompt }}{{ hint }}")[0]


def test_a_missing_column_is_named_with_file_and_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b", "c"]}), tmp_path / "q.parquet")
    with pytest.raises(
        DatasetError, match=r"q\.parquet, row 0 \(from 0\): the prompt template asks for 'unit', which is no"
    ):
        prompts(str(tmp_path / "q.parquet"), "{{ prompt }} {{ unit }}")
    with pytest.raises(DatasetError, match=r"row 2 .*'unit', which is no column; it has: prompt"):
        prompts(str(tmp_path / "q.parquet"), "{{ prompt }}{% if prompt == 'c' %}{{ unit }}{% endif %}")
    assert prompts(str(tmp_path / "q.parquet"), "{{ prompt }}{% if unit is defined %}{{ unit }}{% endif %}")[2] == "c"


@pytest.mark.parametrize("field", ["prompt_template", "chat_template"])
def test_a_template_that_cannot_be_used_is_refused_by_name(tmp_path: Path, field: str) -> None:
    section = {"prompt_template": "data", "chat_template": "model"}[field]
    for name, content, message in (
        ("no.jinja", None, f"{section}.{field}: the template .*no.jinja cannot be read .No such file"),
        ("flat.jinja", b"What is it?", "flat.jinja holds no {{ }} or {% %}"),
        ("bytes.jinja", b"{{ \xff", "bytes.jinja cannot be read"),
        ("torn.jinja", b"{{ a }}\n{% if %}", "torn.jinja is no Jinja, line 2: Expected an expression"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_config([f"--{field}", str(tmp_path / name)])


def test_chat_templates_may_use_what_transformers_adds() -> None:
    text = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}"
    assert ModelConfig(chat_template=text).chat_template == text


def test_another_content_is_another_run(tmp_path: Path, local_ray: None) -> None:
    file = tmp_path / "p.jinja"
    cfg = {"data": {"prompt_template": str(file)}}
    digests = []
    for text in ("{{ prompt }} a", "{{ prompt }} b"):
        file.write_text(text)
        digests.append(RunConfig.model_validate(cfg).digest())
    file.rename(tmp_path / "other.jinja")
    moved = RunConfig.model_validate({"data": {"prompt_template": str(tmp_path / "other.jinja")}}).digest()
    assert digests[0] != digests[1] == moved
    chat = {ModelConfig(chat_template=text).chat_template for text in ("{{ messages }} a", "{{ messages }} b")}
    assert len(chat) == 2
    engine = {"backend": "simulated"}
    cfg = {**cfg, "engine": engine, "output": {"output_dir": str(tmp_path / "run")}}
    for text in ("{{ prompt }} a", "{{ prompt }} b"):
        file.write_text(text)
        run_config = RunConfig.model_validate(cfg)
        if text.endswith("a"):
            collect(demo_rows(2), run_config)
            continue
        with pytest.raises(LedgerError, match=r"data\.prompt_template was \"\{\{ prompt \}\} a\" and is"):
            collect(demo_rows(2), run_config)


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_a_finished_run_can_be_verified_and_exported_without_the_file(tmp_path: Path, layout: Layout) -> None:
    """Its text stands in the merged file, and the prompts are made again; `answer` is also a trajectory's field."""
    template = tmp_path / "p.jinja"
    template.write_text("{{ prompt }} In {{ answer }}{% if unit is defined %}{{ unit }}{% endif %}.")
    rows = [{**row, "answer": f"apples {n}"} for n, row in enumerate(demo_rows(9))]
    sections = {"output": {"output_dir": str(tmp_path / "run"), "layout": layout}}
    run = finished(tmp_path / "run", rows, data={"prompt_template": str(template)}, **sections)
    template.unlink()
    result = verify(run.uri)
    assert result.agrees, result.lines()
    export([run.uri], tmp_path / "out.parquet", "grpo")
    asked = [row["prompt"][-1]["content"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()]
    assert asked == [f"{row['prompt']} In {row['answer']}." for row in rows]


@pytest.mark.parametrize("name", ["arms", "reward", "prompt", "chat"])
def test_an_example_runs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    monkeypatch.chdir(ROOT)
    flags = ["--backend", "simulated", "--output_dir", str(tmp_path / "run")]
    cfg = load_config(flags, {}, EXAMPLES / f"{name}.yaml")
    rollouts = collect([{**row, "unit": "pieces"} for row in demo_rows(5)], cfg)
    rows = rollouts.table().to_pylist()
    samples = [(t["arm"], t["sample"]) for t in rows[0]["trajectories"]]
    assert len(samples) == 5 if name == "arms" else len(samples) == 8
    if name == "reward":
        rewards = [t["reward"] for row in rows for t in row["trajectories"] if t["correct"] is False]
        assert set(rewards) <= {0.0}
    assert verify(rollouts.run.uri).agrees


def test_all_examples_together_on_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    """vLLM is asked what the two templates make of the question, to the token, and the reward is the function's."""
    monkeypatch.chdir(ROOT)
    merged: dict[str, Any] = {"output": {"output_dir": str(tmp_path / "run")}, "engine": {"max_num_seqs": 8}}
    for name in ("arms", "reward", "prompt", "chat"):
        loaded = load_config([], {}, EXAMPLES / f"{name}.yaml").model_dump(exclude_unset=True)
        merged |= {section: value for section, value in loaded.items() if value}
    rows = [{**row, "unit": "pieces"} for row in demo_rows(2)]
    rollouts = collect(rows, RunConfig.model_validate(merged))
    tokenizer = AutoTokenizer.from_pretrained(model_folder("demo"))
    tokenizer.chat_template = (EXAMPLES / "chat.jinja").read_text()
    arms = {arm.name: arm for arm in RunConfig.model_validate(merged).arms.arm_list}
    for row, stored in zip(rows, rollouts.table().to_pylist(), strict=True):
        prompt = f"{row['prompt']}\nGive the answer in pieces.\n"
        for trajectory in stored["trajectories"]:
            messages = chat_messages(prompt, arms[trajectory["arm"]].system_prompt)
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert text.endswith(f"User: {prompt}\nAssistant:\n") and ("system" in text) is False
            assert trajectory["num_prompt_tokens"] == len(tokenizer.encode(text, add_special_tokens=False))
            assert trajectory["reward"] == 0.0 or trajectory["correct"]
