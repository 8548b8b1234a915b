"""A broken checkpoint is refused before an engine loads it, by what is wrong with it. No engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rollout_ray import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.models import finite_weights
from rollout_ray.models.checkpoint_check import check_checkpoint, check_update
from rollout_ray.models.model_check import check_before_start
from rollout_ray.models.resolved_run import resolve
from tests.test_checkpoints import DEMO, Tensors, checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def whole(folder: Path, change: Callable[[Tensors], object] = lambda tensors: None, **config: Any) -> Path:
    """A checkpoint with its tokenizer."""
    made = Path(checkpoint(folder, change, **config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(Path(DEMO) / name, made)
    return made


def start(folder: Path, **sections: Any) -> None:
    model = {"model_path": str(folder), **sections.pop("model", {})}
    check_before_start(resolve(RunConfig.model_validate({"model": model, **sections})))


def set_value(name: str, value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = value

    return change


def to_eight_bits(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(torch.float8_e4m3fn) if tensor.dim() > 1 else tensor


K = "model.layers.1.self_attn.k_proj.weight"
FP8 = {"quantization_config": {"quant_method": "fp8"}}
BROKEN = [
    pytest.param(lambda t: t.pop(K), {}, f"lack {K}, which other layers have", id="a missing tensor"),
    pytest.param(set_value(K, float("nan")), {}, f"{K} in .* holds NaN or infinite", id="one NaN"),
    pytest.param(set_value("model.norm.weight", float("inf")), {}, r"model\.norm\.weight in .* holds NaN", id="one Inf"),
    pytest.param(lambda t: None, FP8, r"says that the weights are fp8, and they are BF16", id="an fp8 label"),
    pytest.param(to_eight_bits, {}, "weights in .* are F8_E4M3, and config.json has no quant", id="fp8 without its label"),
    pytest.param(lambda t: t.update({K: torch.zeros(0)}), {}, f"{K} in .* has no elements", id="what ZeRO-3 leaves"),
    pytest.param(
        lambda t: t.update({f"_orig_mod.{K}": t.pop(K)}), {}, "those of a wrapped model, such as _orig_mod", id="a wrapper"
    ),
]


@pytest.mark.parametrize(("change", "config", "words"), BROKEN)
def test_broken_weights_start_no_engine_and_are_no_update(
    tmp_path: Path, change: Callable[[Tensors], object], config: dict[str, Any], words: str
) -> None:
    folder = whole(tmp_path / "broken", change, **config)
    with pytest.raises(ConfigError, match=words):
        start(folder)
    with pytest.raises(ConfigError, match=f"{words}.*; the old weights stay in use"):
        check_update(DEMO, str(folder))


def test_what_is_whole_starts(tmp_path: Path) -> None:
    start(whole(tmp_path / "whole"))
    start(whole(tmp_path / "labelled", **FP8), engine={"extra": {"quantization": "fp8"}})
    start(whole(tmp_path / "quantized", to_eight_bits, **FP8))
    start(Path(checkpoint(tmp_path / "bare")), model={"tokenizer_path": DEMO})
    start(whole(tmp_path / "nothing", set_value(K, float("nan"))), engine={"load_format": "dummy"})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_no_file_of_a_model(tmp_path: Path, name: str) -> None:
    folder = whole(tmp_path / "pointer")
    (folder / name).write_text(POINTER)
    with pytest.raises(ConfigError, match=f"{name} is a git-lfs pointer .*run `git lfs pull`"):
        start(folder)


def test_a_pointer_in_the_older_format_is_refused_too(tmp_path: Path) -> None:
    folder = whole(tmp_path / "pointer")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(POINTER)
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a git-lfs pointer"):
        start(folder)


@pytest.mark.parametrize("lost", ["a file", "a tensor"])
def test_what_the_index_names_is_there(tmp_path: Path, lost: str) -> None:
    folder = whole(tmp_path / "shards")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({K: tensors.pop(K)}, folder / "b.safetensors")
    save_file(tensors, folder / "a.safetensors")
    index = dict.fromkeys(tensors, "a.safetensors") | {K: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    start(folder)
    if lost == "a file":
        (folder / "b.safetensors").unlink()
        words = r"b\.safetensors is missing, and model\.safetensors\.index\.json names it"
    else:
        save_file({"other": torch.ones(1)}, folder / "b.safetensors")
        words = rf"b\.safetensors lacks {K}"
    with pytest.raises(ConfigError, match=words):
        start(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model_world_size_2_rank_0.pt", "optim_world_size_2_rank_0.pt"], "shards .*verl.model_merger merge"),
        (["pytorch_model_fsdp_0/__0_0.distcp", "optimizer.bin"], "shards .*accelerate merge-weights"),
        (["zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt", "training_args.bin"], "shards .*zero_to_fp32.py"),
        (["training_args.bin"], "holds no weights; give a folder"),
    ],
)
def test_shards_that_nobody_merged_are_no_model(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    shutil.copy2(Path(DEMO) / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=words):
        start(tmp_path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter and no model; give its base as model_path"):
        start(tmp_path)


def test_a_model_needs_a_tokenizer(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "bare"))
    shutil.copy2(Path(DEMO) / "tokenizer_config.json", folder)
    with pytest.raises(ConfigError, match=r"holds no tokenizer; save it .* or give --tokenizer_path"):
        start(folder)


@pytest.mark.parametrize(
    ("special", "word", "refused"),
    [(False, "<step>", True), (True, "<step>", False), (True, "<|turn|>", True)],
)
def test_a_token_that_a_prompt_may_get_has_an_embedding(tmp_path: Path, special: bool, word: str, refused: bool) -> None:
    """A special token is never made from text. It counts where the chat template writes it."""
    folder = whole(tmp_path / "longer")
    (folder / "chat_template.jinja").write_text("<|turn|>{{ messages[0].content }}")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    tokenizer["added_tokens"].append({"id": 836, "content": word, **kind})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if not refused:
        start(folder)
        return
    with pytest.raises(ConfigError, match=r"has 1 tokens beyond the 836 rows .* such as '<.*'; resize the embedding"):
        start(folder)


def test_layers_of_several_kinds_are_no_loss(tmp_path: Path) -> None:
    """As in a hybrid, whose config names the kinds, and in a pruned model."""
    folder = whole(tmp_path / "hybrid", lambda t: t.pop(K), layer_types=["full", "linear", "full"])
    check_checkpoint(folder)
    check_checkpoint(whole(tmp_path / "pruned", lambda t: t.pop(K), block_configs=[]))


def test_stages_of_an_encoder_are_no_layers(tmp_path: Path) -> None:
    def with_encoder(tensors: Tensors) -> None:
        for stage, blocks in ((0, 2), (1, 6)):
            for block in range(blocks):
                tensors[f"vision_tower.layers.{stage}.blocks.{block}.weight"] = torch.ones(1)

    check_checkpoint(whole(tmp_path / "pictures", with_encoder))


def test_a_label_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = whole(tmp_path / "quantized", to_eight_bits)
    (folder / "hf_quant_config.json").write_text("{}")
    check_checkpoint(folder)
    check_checkpoint(whole(tmp_path / "compressed", to_eight_bits, compression_config={"quant_method": "sparse"}))


def test_a_large_checkpoint_is_read_in_blocks_of_each_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_weights, "READ_WHOLE", 0)
    start(whole(tmp_path / "sound"))
    with pytest.raises(ConfigError, match=f"{K} in .* holds NaN"):
        start(whole(tmp_path / "last", set_value(K, float("nan"))))
    monkeypatch.setattr(finite_weights, "BLOCKS", 2)
    start(whole(tmp_path / "between", set_value(K, float("nan"))))
    with pytest.raises(ConfigError, match="holds NaN"):
        start(whole(tmp_path / "all", lambda t: [tensor.fill_(float("nan")) for tensor in t.values()]))
