"""The shipped model: its size, what it gets right on unseen questions, and the job that trained it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout_ray.config import arms
from rollout_ray.config.arm_schema import ArmConfig
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.jobs.train_demo_model import accuracy, solution
from rollout_ray.models.paths import model_folder
from rollout_ray.scoring.extraction import extract_answer
from tests.conftest import ROOT, clean_environment
from tests.doc_blocks import blocks


def test_it_is_small_and_in_safetensors() -> None:
    files = {f.name: f.stat().st_size for f in Path(model_folder("demo")).iterdir()}
    assert sum(files.values()) < 10_000_000
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"} <= set(files)


def test_it_is_right_most_of_the_time_when_cold_and_less_when_warm(long_computation: None) -> None:
    """120 questions that are unseen by construction, at the two ends of Regime W's temperatures."""
    folder = model_folder("demo")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    problems = list(itertools.islice(generate_problems(11, "test"), 120))
    torch.manual_seed(0)
    cold, warm = (
        accuracy(model, tokenizer, ArmConfig(name="a", system_prompt=arms.WOLFRAM, temperature=t, top_p=0.95), problems)
        for t in (0.2, 0.5)
    )
    assert 0.60 <= cold <= 0.95
    assert warm < cold
    code = next(block.text for block in blocks() if block.page == "README" and block.kind == "python")
    names: dict[str, Any] = {}
    exec(code[code.index("question = ") : code.index("cfg = ")], names)
    (row,) = names["rows"]
    asked: list[Any] = [SimpleNamespace(question=row["prompt"], answer=row["gold_answer"])] * 8
    plain = ArmConfig(name="samples", temperature=1.0, top_p=0.95)
    assert accuracy(model, tokenizer, plain, asked) >= 0.75  # a reader's first run must not show accuracy 0


@pytest.mark.parametrize("style", [arms.WOLFRAM, arms.MAUDLIN, arms.WOLFRAM_REPHRASE, arms.MAUDLIN_CF1, None])
def test_training_solutions_end_in_an_answer_that_is_mostly_right(style: str | None) -> None:
    import random

    rng = random.Random(0)
    problems = list(itertools.islice(generate_problems(1, "train"), 300))
    texts = [solution(problem, style, rng) for problem in problems]
    answers = [extract_answer(text).answer for text in texts]
    assert all(text.splitlines()[-1].startswith("Answer: ") for text in texts)
    right = sum(a is not None and a.text == p.answer for a, p in zip(answers, problems, strict=True))
    assert 0.6 < right / len(problems) < 0.95  # the rest are the slips that make temperature matter


def test_the_training_job_makes_a_model_that_loads(tmp_path: Path, programs: None) -> None:
    words = ["--steps", "3", "--examples", "200", "--batch-size", "8", "--layers", "1", "--eval", "2", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "rollout_ray.jobs.train_demo_model", "--out", str(tmp_path), *words],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "T 0.5: 0.0% right" in done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 1
    tokens = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "1 + 12"}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path)(**tokens).logits.shape[:2] == tokens["input_ids"].shape
