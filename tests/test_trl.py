"""Train one step with TRL's trainers on exported files and the demo model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout_ray.export.formats import export
from rollout_ray.models.paths import model_folder
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import demo_rows
from tests.finished_runs import finished

ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-4,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished(tmp_path_factory.mktemp("trl") / "run", demo_rows(30))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, long_computation: None) -> Iterator[None]:
    """Keep TRL's model card from asking the hub for the base model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def loaded(run: RunDirectory, folder: Path, form: Any, suffix: str) -> Dataset:
    path = folder / f"{form}.{suffix}"
    export([run.uri], path, form)
    kind = "parquet" if suffix == "parquet" else "json"
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(folder / "cache"))


def trained(trainer: Any) -> dict[str, float]:
    """Train one step and return its log. The weights must have changed."""
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    result = trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    print({key: value for key, value in log.items() if isinstance(value, float)})
    assert result.global_step == 1 and math.isfinite(log["loss"]) and log["grad_norm"] > 0
    assert any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())
    return log


def parts() -> dict[str, Any]:
    folder = model_folder("demo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return {"model": model, "processing_class": AutoTokenizer.from_pretrained(folder)}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_dpo(run: RunDirectory, tmp_path: Path, suffix: str) -> None:
    from trl import DPOConfig, DPOTrainer

    pairs = loaded(run, tmp_path, "dpo", suffix)
    trainer = DPOTrainer(**parts(), args=DPOConfig(output_dir=str(tmp_path), **ONE_STEP), train_dataset=pairs)
    log = trained(trainer)
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-3), "before its first step the policy is the reference"
    first = next(iter(trainer.train_dataset))
    tokenizer = trainer.processing_class
    assert tokenizer.decode(first["prompt_ids"]) == f"<|user|>{pairs[0]['prompt'][0]['content']}<|end|><|assistant|>"
    assert tokenizer.decode(first["chosen_ids"]) == f"{pairs[0]['chosen'][0]['content']}<|end|>"


def test_sft(run: RunDirectory, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    best = loaded(run, tmp_path, "sft", "parquet")
    trainer = SFTTrainer(**parts(), args=SFTConfig(output_dir=str(tmp_path), **ONE_STEP), train_dataset=best)
    trained(trainer)
    first = next(iter(trainer.train_dataset))
    labels = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != -100]
    assert trainer.processing_class.decode(labels) == f"{best[0]['completion'][0]['content']}<|end|>"


def test_grpo(run: RunDirectory, tmp_path: Path) -> None:
    """TRL generates its own completions. It reads the prompts and passes other columns to the reward."""
    from trl import GRPOConfig, GRPOTrainer

    groups = loaded(run, tmp_path, "grpo", "parquet").remove_columns("completions")
    golds = []

    def reward(completions: list[Any], reward_model: list[dict[str, str]], **_: Any) -> list[float]:
        golds.extend(entry["ground_truth"] for entry in reward_model)
        return [float(number % 2) for number, _ in enumerate(completions)]

    args = GRPOConfig(output_dir=str(tmp_path), **ONE_STEP, num_generations=4, max_completion_length=16, temperature=3.0)
    trained(GRPOTrainer(**parts(), reward_funcs=reward, args=args, train_dataset=groups))
    assert golds and set(golds) <= {row["gold_answer"] for row in demo_rows(30)}
