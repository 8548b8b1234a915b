"""Whatever value a config file has for a field: it is a config that can be stored, or an error that names the field."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.config.loading import changed, load_config
from rollout_ray.config.schema import RunConfig, leaf_fields
from rollout_ray.core.errors import ConfigError

FIELDS = leaf_fields(RunConfig)
FLOATS = sorted(
    name
    for name, field in FIELDS.items()
    if re.search(r"\bfloat\b", str(field.annotation)) and not re.search("tuple|dict", str(field.annotation))
)
# What YAML can make of a value.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.just(datetime.date(2026, 1, 2)),
)
KEYS = st.one_of(st.text(max_size=5), st.integers(0, 3), st.none(), st.just(datetime.date(2026, 1, 2)))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def at(name: str, value: Any) -> dict[str, Any]:
    """The sections in which the field of this dotted name has this value."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


@given(name=st.sampled_from(sorted(FIELDS)), value=VALUES)
def test_any_value_is_stored_or_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    try:
        config = changed({}, at(name, value))
    except ConfigError as error:
        assert name.rpartition(".")[0] in str(error) or name.rpartition(".")[2] in str(error)
        return
    assert len(config.digest()) == 16
    stored = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    assert RunConfig.model_validate(json.loads(stored)).digest() == config.digest()


@pytest.mark.parametrize("name", ["data", "model", "engine", "engine.simulated", "arms", "sampling", "scoring", "output"])
@pytest.mark.parametrize("value", [["a"], "a", 3, {"a": [1]}, {3: 4}, {datetime.date(2026, 1, 2): 1}])
def test_a_section_that_is_none_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        changed({}, at(name, value))


@pytest.mark.parametrize("value", [["regime-w"], {"regime-w": 1}, 3, None])
def test_a_reward_preset_that_is_no_name_is_refused_by_its_field(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"scoring\.reward_preset must be 'regime-w', 'regime-w-2' or 'exact', not"):
        changed({}, {"scoring": {"reward_preset": value}})


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_number_is_finite(name: str, text: str) -> None:
    flag = name.rpartition(".")[2]
    for word in (text, text.replace("inf", "Infinity").replace("nan", "NaN")):
        with pytest.raises(ConfigError, match=rf"{flag} must be a finite number"):
            load_config([f"--{flag}={word}"])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--s_wm_weights", "[NaN, 0.5, 0.5]"], r"scoring\.s_wm_weights\.0"),
        (["--reward_weights", "a=nan"], r"scoring\.reward_weights\.a"),
        (["--extra_sampling", '{"min_p": NaN}'], r"sampling\.extra_sampling: min_p"),
        (["--extra_sampling", "min_p=.inf"], r"sampling\.extra_sampling: min_p"),
        (["--extra_sampling", "min_p=1e999"], r"sampling\.extra_sampling: min_p"),
        (["--extra", '{"a": {"b": [1, Infinity]}}'], r"engine\.extra: a\.b\.1"),
        (["--chat_template_kwargs", "a=.nan"], r"model\.chat_template_kwargs: a"),
        (["--arm_list", '[{"name": "a", "temperature": Infinity}]'], r"arms\.arm_list\.0\.temperature"),
        (["--budget", "9" * 400], "resources: the budget"),
    ],
)
def test_a_number_within_a_field_is_finite_too(words: list[str], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_config(words)


@pytest.mark.parametrize("text", ["5e-2", "5E-2", "+5e-2", ".5e-1", "0.5e-1", "0.05"])
def test_a_number_with_an_exponent_is_a_number_wherever_it_stands(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"sampling: {{temperature: {text}, extra_sampling: {{min_p: {text}}}}}\nengine: {{extra: {{a: [{text}]}}}}\n"
        f"scoring: {{s_wm_weights: [{text}, 0.45, 5e-1]}}\narms: {{arm_list: [{{name: a, temperature: {text}}}]}}\n"
    )
    config = load_config([], {}, file)
    assert config.sampling.temperature == config.arms.arm_list[0].temperature == 0.05
    assert config.sampling.extra_sampling == {"min_p": 0.05} and config.engine.extra == {"a": [0.05]}
    assert config.scoring.s_wm_weights == (0.05, 0.45, 0.5)
    flags = load_config(["--extra_sampling", f"min_p={text}", "--temperature", text])
    assert flags.sampling.extra_sampling == {"min_p": 0.05} and flags.sampling.temperature == 0.05


def test_whole_numbers_may_have_an_exponent_and_quoted_ones_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sampling: {max_tokens: 1e3, extra_sampling: {a: '5e-2', b: 1e5x, c: e5}}\n")
    sampling = load_config([], {}, file).sampling
    assert sampling.max_tokens == 1000 and sampling.extra_sampling == {"a": "5e-2", "b": "1e5x", "c": "e5"}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_writes_of_a_number_is_read_as_that_number(number: float) -> None:
    given = load_config(["--extra_sampling", f"min_p={number!r}"]).sampling.extra_sampling["min_p"]
    assert given == number and math.copysign(1, given) == math.copysign(1, number)
