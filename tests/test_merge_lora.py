"""Compare `rollout merge-lora` with peft itself, on the demo model and on a small sharded one."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from rollout_ray.core.errors import ConfigError, VerifyError
from rollout_ray.lora.merge import merge_lora
from rollout_ray.models.adapters import check_adapter
from rollout_ray.models.paths import model_folder
from rollout_ray.models.weight_files import tensor_shapes
from tests.conftest import Command
from tests.test_architectures import saved

TOKENS = torch.arange(5, 45)[None]


def saved_adapter(base: Path, folder: Path, kind: Any = AutoModelForCausalLM, **fields: Any) -> Any:
    """Save a LoRA like training does: no matrix is zero, whole modules have changed. Return the adapted model."""
    from peft import LoraConfig, get_peft_model  # here, since every test process would import it

    torch.manual_seed(0)
    model = kind.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], **fields})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about tied embeddings, which some cases test
        adapted = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.data += torch.randn_like(weight) * 0.05
        adapted.save_pretrained(folder)
    return adapted.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 model in several files with an untied head and the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("sharded") / "base"
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=900,
        attention_bias=True,
        tie_word_embeddings=False,
        initializer_range=0.06,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200KB")
    AutoTokenizer.from_pretrained(model_folder("demo")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with transposed weights (fan_in_fan_out) and names without the language model's prefix."""
    folder = tmp_path_factory.mktemp("gpt2") / "base"
    torch.manual_seed(1)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=900, n_positions=128, initializer_range=0.2)
    GPT2LMHeadModel(config).transformer.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(content))
    AutoTokenizer.from_pretrained(model_folder("demo")).save_pretrained(folder)
    return folder


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("demo", {}),
    "all linear layers": ("sharded", {"target_modules": "all-linear"}),
    "rank-stabilised, ranks and alphas by layer": (
        "sharded",
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"1\.self_attn\.q_proj": 3}},
    ),
    "some layers": ("sharded", {"layers_to_transform": [1]}),
    "embedding and head": ("sharded", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "whole modules": ("sharded", {"modules_to_save": ["lm_head", "norm"]}),
    "transposed weights": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding, tied": ("demo", {"target_modules": ["q_proj", "embed_tokens"]}),
    "head, tied": ("demo", {"target_modules": ["q_proj", "lm_head"]}),
    "whole head, tied": ("demo", {"modules_to_save": ["lm_head"]}),
    "whole embedding, tied": ("demo", {"modules_to_save": ["embed_tokens"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_equals_peft_s_merge(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    name, fields = KINDS[kind]
    base = Path(model_folder("demo")) if name == "demo" else request.getfixturevalue(name)
    adapted = saved_adapter(base, tmp_path / "adapter", **fields)
    wanted = logits(adapted)
    lines: list[str] = []
    merged = merge_lora(str(base), str(tmp_path / "adapter"), str(tmp_path / "merged"), lines.append)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    tied = name != "sharded" and "tied" in kind
    assert loaded.config.tie_word_embeddings is (name != "sharded" and not tied)
    difference = float((logits(loaded.float()) - wanted).abs().max())
    assert difference < 0.05 * float(wanted.std()) < merged.agreement.effect
    assert merged.agreement.difference < 0.05 * merged.agreement.spread
    assert merged.agreement.agreeing > 0.9 * merged.agreement.positions
    got = tensors(tmp_path / "merged")
    assert got.keys() == tensor_shapes(base).keys() | ({"lm_head.weight"} if tied else set())
    if not tied:  # peft adds in place, so it changes both of two tied weights
        whole = {n.removeprefix("transformer."): t for n, t in adapted.merge_and_unload().state_dict().items()}
        for tensor_name, tensor in got.items():
            assert tensor.equal(whole[tensor_name].to(torch.bfloat16)), tensor_name


def test_files_index_and_tokenizer(tmp_path: Path, sharded: Path) -> None:
    saved_adapter(sharded, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(sharded)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merged = merge_lora(str(sharded), str(tmp_path / "adapter"), str(tmp_path / "merged"), lambda text: None)
    names = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert sorted(file.name for file in (tmp_path / "merged").glob("*.safetensors")) == names and len(names) > 2
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    old = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == old["weight_map"]
    assert (
        index["metadata"]["total_size"] == merged.size_bytes == sum(t.nbytes for t in tensors(tmp_path / "merged").values())
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_second_copy_of_the_base_weights_is_not_copied(tmp_path: Path) -> None:
    """An engine would prefer Mistral's own format, whose weights lack the adapter."""
    base = tmp_path / "base"
    shutil.copytree(model_folder("demo"), base)
    own_names = {f"layers.{name}": tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(own_names, base / "consolidated.safetensors")
    (base / "params.json").write_text("{}")
    saved_adapter(base, tmp_path / "adapter")
    merge_lora(str(base), str(tmp_path / "adapter"), str(tmp_path / "merged"), lambda text: None)
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert "model.safetensors" in names and not names & {"consolidated.safetensors", "params.json"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "it uses use_dora. Merge it with peft's merge_and_unload."),
    "bias": ({"bias": "lora_only"}, "it trains the bias"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "it uses trainable_token_indices"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "it changed the base weights at its start"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_of_adapter_are_refused(tmp_path: Path, kind: str) -> None:
    fields, message = REFUSED[kind]
    saved_adapter(Path(model_folder("demo")), tmp_path / "adapter", **fields)
    with pytest.raises(ConfigError, match=message):
        merge_lora(model_folder("demo"), str(tmp_path / "adapter"), str(tmp_path / "merged"), lambda text: None)
    assert not (tmp_path / "merged").exists()


def test_another_models_adapter_and_a_wrong_one_are_refused(tmp_path: Path, sharded: Path) -> None:
    adapted = saved_adapter(sharded, tmp_path / "adapter")
    demo = model_folder("demo")
    adapter = str(tmp_path / "adapter")
    merged = str(tmp_path / "merged")
    for base, output, message in (
        (demo, merged, "does not fit"),
        (str(tmp_path), merged, "is not a model folder"),
        (str(sharded), adapter, "is not empty"),
        (str(sharded), "/proc/nowhere/merged", "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge_lora(base, adapter, output, lambda text: None)
    with pytest.raises(ConfigError, match="is no adapter"):
        merge_lora(demo, demo, merged, lambda text: None)
    next(p for n, p in adapted.named_parameters() if "lora_A" in n).data.fill_(float("nan"))
    adapted.save_pretrained(adapter)
    with pytest.raises(VerifyError, match="the result was deleted"):
        merge_lora(str(sharded), adapter, merged, lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_command_prints_its_steps(tmp_path: Path, rollout: Command) -> None:
    saved_adapter(Path(model_folder("demo")), tmp_path / "lora")
    done = rollout("merge-lora", "--base", "demo", "--adapter", "lora", "--output", "merged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = (
        "LoRA merge",
        "Base model: ",
        "LoRA adapter: lora",
        "Output path: merged",
        "Reading the base model",
        "Merging model.safetensors (1 of 1)",
        "Taking the tokenizer",
        "largest difference",
        "LoRA merge complete",
        "Merged model saved to: merged",
    )
    positions = [done.stdout.index(step) for step in steps]
    assert positions == sorted(positions)
    again = rollout("merge-lora", "--base", "demo", "--adapter", "lora", "--output", "merged", cwd=tmp_path)
    assert again.returncode == 2 and "Give another --output" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize("kind", ["experts", "pictures, with torchvision"])
def test_models_whose_checkpoints_have_other_names_or_parts(tmp_path: Path, kind: str) -> None:
    """transformers renames tensors of both kinds on loading, and joins the experts."""
    base = Path(saved(tmp_path / "base", kind))
    kept = getattr(transformers, AutoConfig.from_pretrained(base).architectures[0])
    fields = {"target_modules": r".*layers\.\d+\.self_attn\.[qv]_proj", "exclude_modules": ".*vision.*"}
    adapted = saved_adapter(base, tmp_path / "adapter", kept, **fields)
    wanted = logits(adapted)
    check_adapter(str(tmp_path / "adapter"), str(base))  # an engine may also serve it unmerged
    merged = merge_lora(str(base), str(tmp_path / "adapter"), str(tmp_path / "merged"), lambda line: None)
    assert merged.modules == 4
    difference = float((logits(kept.from_pretrained(tmp_path / "merged", dtype=torch.float32)) - wanted).abs().max())
    assert difference < 0.05 * float(wanted.std()) < merged.agreement.effect
    got = tensors(tmp_path / "merged")
    assert got.keys() == tensor_shapes(base).keys() and {tensor.dtype for tensor in got.values()} == {torch.bfloat16}
