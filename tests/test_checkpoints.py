"""What tells checkpoints apart, and which may take the place of another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rollout_ray.core.errors import ConfigError
from rollout_ray.models.checkpoint_check import check_update
from rollout_ray.models.checkpoints import Policy, check_same_shape, model_fingerprint
from rollout_ray.models.paths import model_folder
from rollout_ray.models.weight_files import tensor_shapes

DEMO = model_folder("demo")
Tensors = dict[str, Any]


def checkpoint(folder: Path, change: Callable[[Tensors], object] = lambda tensors: None, **config: Any) -> str:
    """A copy of the demo model with other tensors or config fields; a field that is None is left out."""
    folder.mkdir()
    tensors = load_file(Path(DEMO) / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    fields = json.loads((Path(DEMO) / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return str(folder)


def noisy(tensors: Tensors) -> None:
    """Every matrix is moved by less than its own spread, as training moves them."""
    torch.manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            noise = torch.randn(tensor.shape) * tensor.float().std() * 0.6
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)


def test_two_checkpoints_in_one_place_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_fingerprint(str(tmp_path))
    assert model_fingerprint(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert model_fingerprint(str(tmp_path)) != first
    assert model_fingerprint("org/model") == "org/model"


def test_weights_of_the_same_names_and_sizes_are_told_apart(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    policy = Policy(folder, model_fingerprint(folder))
    assert not policy.changed_on_disk()
    shutil.copy2(checkpoint(tmp_path / "other", noisy) + "/model.safetensors", folder)
    assert policy.changed_on_disk()


def test_weights_of_the_same_shape_fit_whatever_their_type(tmp_path: Path) -> None:
    def widen(tensors: Tensors) -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items()})

    check_same_shape(DEMO, checkpoint(tmp_path / "trained", noisy))
    check_same_shape(DEMO, checkpoint(tmp_path / "wide", widen, dtype="float32", pad_token_id=7, transformers_version="9"))
    assert len(tensor_shapes(Path(DEMO))) > 10


def cut(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:8]


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), {}, r"model\.norm\.weight is missing there and 256 in"),
        (cut, {}, r"model\.norm\.weight is 8 there and 256 in"),
        (lambda t: t.update(extra=torch.zeros(2, 3)), {}, "extra is 2x3 there and missing in"),
        (lambda t: None, {"hidden_act": "gelu"}, r"its config differs .* hidden_act \(gelu, not silu\)"),
    ],
)
def test_another_shape_is_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], object], config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"{words}.*the old weights stay in use"):
        check_update(DEMO, checkpoint(tmp_path / "other", change, **config))


def without_head(tensors: Tensors) -> None:
    tensors.pop("lm_head.weight", None)


@pytest.mark.parametrize(
    ("change", "config", "new_change", "new_config"),
    [
        pytest.param(None, {"sliding_window": 131072}, None, {"sliding_window": ...}, id="a field that is null there"),
        pytest.param(None, {}, None, {"eos_token_id": [1, 2], "bos_token_id": 5}, id="the tokenizer's end tokens"),
        pytest.param(
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
            {"tie_word_embeddings": True}, without_head, {"tie_word_embeddings": True}, id="a tied layer that was stored",
        ),
        pytest.param(
            lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": t["model.norm.weight"].clone()}),
            {}, None, {}, id="frequencies that any engine computes",
        ),
        pytest.param(
            lambda t: t.update({"mtp.fc.weight": t["model.norm.weight"].clone()}), {}, None, {}, id="drafting layers"
        ),
    ],
)  # fmt: skip
def test_what_transformers_saves_of_a_hub_model_takes_its_place(
    tmp_path: Path, change: Any, config: dict[str, Any], new_change: Any, new_config: dict[str, Any]
) -> None:
    nothing: Callable[[Tensors], object] = lambda tensors: None  # noqa: E731
    held = checkpoint(tmp_path / "held", change or nothing, **config)
    new = Path(checkpoint(tmp_path / "new", new_change or nothing))
    fields = json.loads((Path(held) / "config.json").read_text()) | new_config
    fields = {name: None if value is ... else value for name, value in fields.items()}
    (new / "config.json").write_text(json.dumps(fields))
    check_same_shape(held, str(new))


def test_an_output_layer_of_its_own_must_be_there(tmp_path: Path) -> None:
    stored: Callable[[Tensors], object] = lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})  # noqa: E731
    held = checkpoint(tmp_path / "held", stored, tie_word_embeddings=False)
    new = checkpoint(tmp_path / "new", without_head, tie_word_embeddings=False)
    with pytest.raises(ConfigError, match=r"lm_head\.weight is missing there"):
        check_same_shape(held, new)


def test_weights_that_stand_there_twice_count_once(tmp_path: Path) -> None:
    """Mistral's folders have all of them again under other names."""
    held = Path(checkpoint(tmp_path / "held"))
    twice = load_file(held / "model.safetensors")
    save_file({f"layers.{name}": tensor for name, tensor in twice.items()}, held / "consolidated.safetensors")
    assert tensor_shapes(held) == tensor_shapes(Path(DEMO))
    check_same_shape(str(held), checkpoint(tmp_path / "new", noisy))


def test_the_config_of_a_part_is_compared_field_by_field(tmp_path: Path) -> None:
    """Where the model takes pictures as well, and a trainer writes down what the original left out."""
    held = checkpoint(tmp_path / "held", text_config={"hidden_act": "silu", "dtype": "bfloat16"})
    check_same_shape(held, checkpoint(tmp_path / "new", text_config={"hidden_act": "silu", "dtype": "float32", "bias": 1}))
    with pytest.raises(ConfigError, match=r"in text_config\.hidden_act \(gelu, not silu\)"):
        check_same_shape(held, checkpoint(tmp_path / "other", text_config={"hidden_act": "gelu"}))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        check_same_shape(DEMO, str(tmp_path))
    folder = Path(checkpoint(tmp_path / "torn"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"no whole safetensors file \(it is cut short\)"):
        check_same_shape(DEMO, str(folder))
    file.unlink()
    with pytest.raises(ConfigError, match="holds no safetensors file"):
        check_same_shape(DEMO, str(folder))
