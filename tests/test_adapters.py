"""LoRA adapters: what is refused before anything starts, and that vLLM draws with them as with the merged model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout_ray import RolloutPool, RunConfig, collect
from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.models.adapters import Capacity, capacity, check_adapter
from rollout_ray.models.paths import model_folder
from rollout_ray.models.resolved_run import resolve
from tests.conftest import demo_rows
from tests.test_collect import trajectories

DEMO = Path(model_folder("demo"))
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter(folder: Path, rank: int = 8, merged: Path | None = None, targets: list[str] = PROJECTIONS) -> str:
    """A peft adapter of the demo model with random matrices; and, where asked for, the model that it makes."""
    import torch
    from peft import LoraConfig, get_peft_model  # here, since every test process would import it

    torch.manual_seed(rank)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    wrapped.save_pretrained(folder)
    if merged:
        wrapped.merge_and_unload().save_pretrained(merged)
        for file in DEMO.iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                shutil.copy(file, merged)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters `eight` and `four`, of these ranks, and the merged models `eight-merged` and `four-merged`."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, rank in (("eight", 8), ("four", 4)):
        adapter(folder / name, rank, folder / f"{name}-merged")
    return folder


def greedy(output: Path, arms: dict[str, str | None], **model: str) -> RunConfig:
    arm_list = [{"name": name, "temperature": 0.0, "max_tokens": 60, "lora_path": path} for name, path in arms.items()]
    return RunConfig.model_validate(
        {
            "output": {"output_dir": str(output)},
            "model": model,
            "arms": {"arm_list": arm_list},
            "engine": {"max_model_len": 512, "dtype": "float32"},
            "resources": {"replicas": 1},
        }
    )


def texts(cfg: RunConfig) -> dict[str, list[str]]:
    """The texts of twelve questions by arm."""
    frame = trajectories(collect(demo_rows(12), cfg))
    return {str(arm): list(rows["full_text"]) for arm, rows in frame.groupby("arm")}


def test_an_arm_s_adapter_draws_what_the_merged_model_draws(tmp_path: Path, folders: Path, local_ray: None) -> None:
    """Three arms of one run: the bare model and two adapters. In float32: bfloat16 rounds a merged matrix."""
    eight, four = str(folders / "eight"), str(folders / "four")
    drawn = texts(greedy(tmp_path / "run", {"bare": None, "eight": eight, "four": four}))
    assert drawn["bare"] == texts(greedy(tmp_path / "bare", {"bare": None}))["bare"]
    for name in ("eight", "four"):
        merged = texts(greedy(tmp_path / name, {"merged": None}, model_path=str(folders / f"{name}-merged")))["merged"]
        assert drawn[name] == merged
        assert sum(a == b for a, b in zip(drawn[name], drawn["bare"], strict=True)) <= 2


def test_a_pool_takes_an_adapter_for_each_collection(tmp_path: Path, folders: Path, local_ray: None) -> None:
    """As training an adapter goes: another one in each step, in the same folder too; but not new weights under them."""
    latest = tmp_path / "latest"
    shutil.copytree(folders / "four", latest)
    cfg = greedy(tmp_path / "unused", {"a": None}, lora_path=str(folders / "eight"))
    drawn = []
    with RolloutPool(cfg) as pool:
        for step, path in enumerate([str(folders / "eight"), str(latest), str(latest)]):
            run = {"model": {"lora_path": path}, "output": {"output_dir": str(tmp_path / f"run-{step}")}}
            drawn.append(list(trajectories(pool.collect(demo_rows(12), run))["full_text"]))
            if step == 1:
                adapter(latest, 8)
        with pytest.raises(LedgerError, match=r"adapters\.fingerprint was"):
            pool.collect(
                demo_rows(12), {"model": {"lora_path": str(latest)}} | {"output": {"output_dir": str(tmp_path / "run-1")}}
            )
        with pytest.raises(
            ConfigError, match="the run has 2 adapters of rank up to 8, and the pool's engines were started"
        ):
            pool.collect(demo_rows(12), greedy(tmp_path / "two", {"a": str(latest), "b": str(folders / "eight")}))
        with pytest.raises(ConfigError, match="engines with adapters cannot take new weights"):
            pool.update_weights(str(folders / "eight-merged"))
    assert drawn[0] == drawn[2] != drawn[1]


def test_the_room_is_that_of_the_largest_adapter(folders: Path) -> None:
    assert capacity([]) == Capacity(0, 0)
    assert capacity([str(folders / "four"), str(folders / "eight")]) == Capacity(8, 2)
    assert Capacity(16, 2).holds(Capacity(8, 2)) and not Capacity(8, 1).holds(Capacity(8, 2))


def changed_config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def changed_tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return write


def narrower(tensors: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()


def renamed(tensors: dict[str, Any]) -> None:
    name = next(iter(tensors))
    tensors[name.replace("layers.0", "layers.9")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: os.remove(folder / "adapter_config.json"), r"is no adapter: adapter_config\.json cannot be read"),
        (lambda folder: os.remove(folder / "adapter_model.safetensors"), "holds no safetensors file"),
        (changed_config(peft_type="IA3"), "is no LoRA adapter"),
        (changed_config(use_dora=True), "it uses DoRA; merge it"),
        (changed_config(bias="all"), r"it trains the bias \('all'\)"),
        (changed_config(modules_to_save=["lm_head"]), "it replaces whole modules"),
        (changed_config(rank_pattern={"q_proj": 16}), "its rank or alpha differs between layers"),
        (changed_config(r=1024), "its rank is 1024 and at most 512 can be served"),
        (changed_config(r=16), r"another model's: .* is \(8, \d+\), not \(16, \d+\)"),
        (changed_tensors(narrower), r"another model's: .* is \(8, 639\), not \(8, 640\)"),
        (changed_tensors(renamed), r"has no module model\.layers\.9\.mlp\.down_proj"),
        (changed_tensors(lambda t: t.pop(next(iter(t)))), r"lacks base_model\.model\..*\.lora_[AB]\.weight, and"),
        (changed_tensors(lambda t: next(iter(t.values())).fill_(float("nan"))), "holds NaN or infinite values"),
        (changed_tensors(lambda t: t.update(odd=next(iter(t.values())).clone())), "holds odd, which is no LoRA matrix"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, folders: Path, change: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(folders / "eight", tmp_path / "odd")
    change(tmp_path / "odd")
    with pytest.raises(ConfigError, match=words):
        check_adapter(str(tmp_path / "odd"), str(DEMO))


def test_an_adapter_that_was_trained_to_be_asked_otherwise_is_drawn_with_what_one_says(
    tmp_path: Path, folders: Path, local_ray: None
) -> None:
    """Unmerged it would be asked with the base's chat template, merged with its own."""
    shutil.copytree(folders / "eight", tmp_path / "own")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.save_pretrained(tmp_path / "own")
    same = greedy(tmp_path / "same", {"a": str(tmp_path / "own")})
    assert list(resolve(same).adapters) == [str(tmp_path / "own")]
    tokenizer.chat_template = "{{ messages[0]['content'] }} Answer:"
    tokenizer.save_pretrained(tmp_path / "own")
    message = rf"saved with another chat template than {re.escape(str(DEMO))} has; give --tokenizer_path"
    with pytest.raises(ConfigError, match=message):
        collect(demo_rows(1), same)
    own = greedy(tmp_path / "own-run", {"a": str(tmp_path / "own")}, tokenizer_path=str(tmp_path / "own"))
    (row,) = collect(demo_rows(1), own).table().to_pylist()
    asked = tokenizer.encode(f"{row['prompt']} Answer:", add_special_tokens=False)
    assert row["trajectories"][0]["num_prompt_tokens"] == len(asked)
    tokenizer.chat_template = AutoTokenizer.from_pretrained(DEMO).chat_template
    tokenizer.eos_token = "<|other|>"
    tokenizer.save_pretrained(tmp_path / "own")
    with pytest.raises(ConfigError, match="another end token"):
        collect(demo_rows(1), same)


def test_a_missing_adapter_is_named_before_anything_starts(tmp_path: Path, folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"/nowhere is no adapter"):
        collect(demo_rows(1), greedy(tmp_path / "run", {"a": "/nowhere"}))
    values = greedy(tmp_path / "run", {"a": str(folders / "eight")}).model_dump()
    values["engine"]["backend"] = "simulated"
    with pytest.raises(ConfigError, match="the simulated engine has no adapters"):
        collect(demo_rows(1), RunConfig.model_validate(values))
    assert not (tmp_path / "run").exists()


def test_what_vllm_does_not_serve_is_an_error_with_its_words(tmp_path: Path, local_ray: None) -> None:
    """An adapter of the norms has the right shapes, as far as they can be told, and no LoRA layer in vLLM."""
    path = adapter(tmp_path / "odd", 8, targets=["embed_tokens", "q_proj"])
    with pytest.raises(ConfigError, match="adapter"):
        collect(demo_rows(1), greedy(tmp_path / "run", {"a": path}))
