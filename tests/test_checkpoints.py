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

from rollout_ray.checkpoints import Policy, check_same_shape, model_fingerprint, tensor_shapes
from rollout_ray.errors import ConfigError
from rollout_ray.models import model_folder

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
        check_same_shape(DEMO, checkpoint(tmp_path / "other", change, **config))


def test_the_config_of_a_part_is_compared_field_by_field(tmp_path: Path) -> None:
    """Where the model takes pictures as well, and a trainer writes down what the original left out."""
    held = checkpoint(tmp_path / "held", text_config={"hidden_act": "silu", "dtype": "bfloat16"})
    check_same_shape(held, checkpoint(tmp_path / "new", text_config={"hidden_act": "silu", "dtype": "float32", "bias": 1}))
    with pytest.raises(ConfigError, match=r"in text_config\.hidden_act \(gelu, not silu\);"):
        check_same_shape(held, checkpoint(tmp_path / "other", text_config={"hidden_act": "gelu"}))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        check_same_shape(DEMO, str(tmp_path / "nowhere"))
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
