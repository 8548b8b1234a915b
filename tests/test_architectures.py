"""Models of other kinds than the demo model: that they draw, and that new weights in a running engine are those that an
engine has which is started with them. Real vLLM on the CPU, small random models as a trainer saves them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from rollout_ray import RolloutPool, Rollouts, RunConfig, collect
from rollout_ray.core.errors import EngineError
from rollout_ray.models.paths import model_folder
from tests.conftest import demo_rows
from tests.test_collect import trajectories
from tests.test_pool import at

TEXT = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
IMAGE = "<image>"


def saved(folder: Path, kind: str) -> str:
    """A model of that kind, and the demo model's tokenizer with a token for pictures. No processor of pictures."""
    tokenizer = hf.AutoTokenizer.from_pretrained(model_folder("demo"))
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    text: dict[str, Any] = TEXT | ends | {"vocab_size": -(-len(tokenizer) // 64) * 64}
    config = {
        "pictures": lambda: hf.Idefics3Config(
            text_config={"model_type": "llama", **text}, vision_config={"image_size": 28, **VISION}, image_token_id=image
        ),
        "pictures, with torchvision": lambda: hf.Gemma3Config(
            text_config={"head_dim": 32, **text}, vision_config=VISION, image_token_index=image
        ),
        "hybrid": lambda: hf.FalconH1Config(**text, mamba_n_heads=8, mamba_d_head=32, mamba_d_ssm=256, mamba_d_state=32),
        "experts": lambda: hf.MixtralConfig(**text, num_local_experts=4),
        "experts with a loader of their own": lambda: hf.GptOssConfig(
            **text, head_dim=32, num_local_experts=4, num_experts_per_tok=2
        ),
    }[kind]()
    maker = hf.AutoModelForImageTextToText if "pictures" in kind else hf.AutoModelForCausalLM
    torch.manual_seed(2)  # with some weights, rounding sends a token to another expert
    model = maker.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained(base: str, folder: Path) -> str:
    """The same model after a step of training, as far as an engine can tell."""
    config = hf.AutoConfig.from_pretrained(base)
    model = getattr(hf, config.architectures[0]).from_pretrained(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def greedy(model: str, output: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"model_path": model},
            "engine": {"max_model_len": 512, "max_num_seqs": 1},  # a text depends on its batch, and that on time
            "arms": {"arm_set": "greedy"},
            "sampling": {"max_tokens": 16},
            "resources": {"replicas": 1},
            "output": {"output_dir": str(output)},
        }
    )


def texts(rollouts: Rollouts) -> list[str]:
    frame = trajectories(rollouts)
    assert len(frame) == 8 and not frame["error"].any()
    return list(frame["full_text"])


@pytest.mark.parametrize("kind", ["pictures", "hybrid", "experts"])
def test_it_draws_and_takes_new_weights(kind: str, tmp_path: Path, folders: Callable[[], Path], local_ray: None) -> None:
    base = saved(tmp_path / "base", kind)
    new = trained(base, tmp_path / "step-1")
    rows = demo_rows(8)
    with RolloutPool(greedy(base, folders())) as pool:
        old = texts(pool.collect(rows))
        pool.update_weights(new)
        updated = texts(pool.collect(rows, at(folders())))
        pool.update_weights(base)
        again = texts(pool.collect(rows, at(folders())))
    assert updated == texts(collect(rows, greedy(new, folders()))) != old == again


def test_weights_that_vllm_leaves_out_are_an_error(tmp_path: Path, folders: Callable[[], Path], local_ray: None) -> None:
    base = saved(tmp_path / "base", "experts with a loader of their own")
    new = trained(base, tmp_path / "step-1")
    with RolloutPool(greedy(base, folders())) as pool:
        old = texts(pool.collect(demo_rows(8)))
        with pytest.raises(
            EngineError, match=r"vLLM left out \d+ of \d+ tensors of this model, such as .*; the old weights"
        ):
            pool.update_weights(new)
        assert texts(pool.collect(demo_rows(8), at(folders()))) == old


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed here")
def test_a_package_that_a_model_needs_is_named_with_its_remedy(
    tmp_path: Path, folders: Callable[[], Path], local_ray: None
) -> None:
    base = saved(tmp_path / "base", "pictures, with torchvision")
    with pytest.raises(EngineError, match=r"vLLM needs torchvision for Gemma3.*: pip install torchvision torch=="):
        collect(demo_rows(1), greedy(base, folders()))
