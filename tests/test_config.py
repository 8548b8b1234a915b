"""The config model, its sources and its digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from rollout_ray.config.help import help_text
from rollout_ray.config.identity import OPERATIONAL, is_operational
from rollout_ray.config.loading import FLAGS, changed, load_config
from rollout_ray.config.schema import RunConfig, leaf_fields
from rollout_ray.config.scoring_schema import reward_sentence
from rollout_ray.core.errors import ConfigError
from tests.conftest import ROOT, Command

SEED_PARAMETERS = {
    "model_path", "trust_remote_code", "prompt_key", "n_samples", "max_tokens", "temperature", "top_p", "top_k",
    "repetition_penalty", "seed", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "dtype",
    "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "max_num_seqs", "extra",
}  # fmt: skip


def test_every_leaf_has_a_flag_of_its_own_a_description_and_help() -> None:
    fields = leaf_fields(RunConfig)
    assert len(FLAGS) == len(fields)
    assert all(field.description and field.description.endswith((".", ")")) for field in fields.values())
    assert all(f"--{flag} " in help_text() for flag in FLAGS)


def test_every_parameter_of_the_seeds_is_there() -> None:
    assert set(FLAGS) >= SEED_PARAMETERS


@pytest.mark.parametrize("flag", ["--n_samples", "--n-samples", "--sampling.n_samples"])
def test_a_flag_takes_underscores_dashes_or_its_section(flag: str) -> None:
    assert load_config([flag, "8"]).sampling.n_samples == 8
    assert load_config([f"{flag}=8"]).sampling.n_samples == 8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--enforce_eager"], True),
        (["--enforce-eager", "--seed", "1"], True),
        (["--no-enforce-eager"], False),
        (["--enforce_eager", "false"], False),
        (["--enforce_eager=true"], True),
        ([], None),
    ],
)
def test_yes_or_no_flags(words: list[str], expected: bool | None) -> None:
    assert load_config(words).engine.enforce_eager is expected


def test_flags_beat_the_environment_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sampling: {n_samples: 1, max_tokens: 1, seed: 1}\nengine: {extra: {a: 1}}\n")
    environment = {"ROLLOUT_N_SAMPLES": "2", "ROLLOUT_MAX_TOKENS": "2", "OTHER": "x", "ROLLOUT_STOP": '["a", "b"]'}
    config = load_config(["--n_samples", "3", "--extra", '{"b": 2}'], environment, file)
    assert (config.sampling.n_samples, config.sampling.max_tokens, config.sampling.seed) == (3, 2, 1)
    assert config.sampling.stop == ["a", "b"]
    assert config.engine.extra == {"b": 2}


def test_lists_and_negative_numbers_as_flags() -> None:
    config = load_config(["--stop", "a", "--stop", "b", "--top_k", "-1", "--s_wm_weights", "[0.5, 0.25, 0.25]"])
    assert config.sampling.stop == ["a", "b"] and config.sampling.top_k == -1
    assert config.scoring.s_wm_weights == (0.5, 0.25, 0.25)


@pytest.mark.parametrize("text", ["\n\n", " ", "a, b", 'Q: "x" [1]', "--", "- a", "{", "\\boxed"])
def test_a_stop_string_is_taken_as_it_is(text: str) -> None:
    both = [text, "b"]
    assert load_config([f"--stop={text}", "--stop", "b"]).sampling.stop == both
    assert load_config(["--stop", json.dumps(both)]).sampling.stop == both
    assert load_config([], {"ROLLOUT_STOP": text}).sampling.stop == [text]


def test_escapes_that_a_shell_leaves_in_a_stop_string_are_read() -> None:
    words = ["--stop", "\\nQ:", "--stop", "\\\\n", "--stop", '["\\\\n"]']
    assert load_config(words).sampling.stop == ["\nQ:", "\\n", "\\n"]
    assert load_config([], {"ROLLOUT_STOP": "\\t"}).sampling.stop == ["\t"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["min_p=0.05"], {"min_p": 0.05}),
        (['{"min_p": 0.05}', "stop_token_ids=[1, 2]"], {"min_p": 0.05, "stop_token_ids": [1, 2]}),
        (["bad_words=[x: y"], {"bad_words": "[x: y"}),
    ],
)
def test_free_values_are_json_or_name_and_value(words: list[str], expected: dict[str, object]) -> None:
    assert load_config([word for text in words for word in ("--extra_sampling", text)]).sampling.extra_sampling == expected


def test_null_unsets_what_the_file_has(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sampling: {max_tokens: 5}\n")
    assert load_config(["--max_tokens", "null"], {}, file).sampling.max_tokens is None


MISTAKES = [
    (["--n_sample", "8"], {}, "--n_sample is not a flag; did you mean --n_samples?"),
    (["--n_samples", "many"], {}, 'sampling.n_samples must be a valid integer, not "many"; give --n_samples such a value'),
    (["--temperature", "-1"], {}, 'sampling.temperature must be greater than or equal to 0, not "-1"'),
    (["--top_p", "0"], {}, "sampling.top_p must be greater than 0"),
    (["--dtype", "int3"], {}, "engine.dtype must be 'auto', .*, not \"int3\""),
    (["--s_wm_weights", "[1, 1, 1]"], {}, "s_wm_weights must sum to 1, not 3"),
    (["--arm_set", "custom"], {}, "arm_set 'custom' has no arms; list them under arm_list"),
    (["--arm_list", '[{"name": "a"}, {"name": "a"}]'], {}, "arm_list names a more than once"),
    (["--arm_list", '[{"name": "../a"}]'], {}, "arms.arm_list.0.name must match pattern"),
    (["--n_samples"], {}, "--n_samples needs a value; see rollout --help"),
    (["stray"], {}, "'stray' is neither a command nor a flag with its value"),
    ([], {"ROLLOUT_TEMPRATURE": "1"}, "ROLLOUT_TEMPRATURE names no field; did you mean ROLLOUT_TEMPERATURE?"),
    (["--dataset", "a", "--dataset=b"], {}, "--dataset is given 2 times: a, b. Name a folder or a glob of all files"),
    ([], {"ROLLOUT_STOP": "[a"}, "ROLLOUT_STOP must be JSON"),
    (["--stop", ""], {}, "sampling.stop.0 must have at least 1 character"),
    (["--extra_sampling", "5"], {}, "--extra_sampling takes name=value, or JSON such as .*, not 5"),
    (
        ["--extra_sampling", "seed=5"],
        {},
        "sampling.extra_sampling: seed cannot stand here: a run has a field for it; give --seed",
    ),
    (["--extra_sampling", "n=5"], {}, "n cannot stand here: a run has a field for it; give --n_samples"),
    (["--extra_sampling", "logprobs=5"], {}, "logprobs cannot stand here: a run has a field for it; give --tokens true"),
    (["--chat_template_kwargs", "tokenize=true"], {}, "model.chat_template_kwargs: tokenize cannot stand here"),
    (["--deterministic", "maybe"], {}, 'engine.deterministic must be a valid boolean, not "maybe"'),
    (["-x"], {}, "-x is not a flag"),
]


def test_variables_of_other_programs_are_named_and_not_read(caplog: pytest.LogCaptureFixture) -> None:
    assert load_config([], {"ROLLOUT_BATCH_SIZE": "512", "ROLLOUT_BACKEND_URL": "x"}) == RunConfig()
    for variable in ("ROLLOUT_BATCH_SIZE", "ROLLOUT_BACKEND_URL"):
        assert f"the environment variable {variable} names no field of a run, and is not read" in caplog.text


def test_a_section_without_fields_has_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sampling:\n  # seed: 1\nengine:\n  simulated:\ndata:\n  limit: null\n")
    assert load_config([], {}, file) == RunConfig()
    assert load_config(["--seed", "7"], {"ROLLOUT_DTYPE": "float16"}, file).sampling.seed == 7
    base = {"sampling": {"seed": 3}}
    assert changed(base, {"sampling": None}).sampling.seed == 3


@pytest.mark.parametrize(("words", "environment", "message"), MISTAKES)
def test_a_mistake_is_one_clear_sentence(words: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as raised:
        load_config(words, environment)
    assert "\n" not in str(raised.value) and "pydantic" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("samplng: {seed: 1}", "samplng is not a field; did you mean sampling?"),
        ("sampling: {sed: 1}", "sampling.sed is not a field; did you mean seed?"),
        ("max_tokens: 5", "max_tokens is not a field; max_tokens belongs under sampling:"),
        ("max-tokens: 5", "max-tokens is not a field; max_tokens belongs under sampling:"),
        ("engine: {seed: 1}", "engine.seed is not a field; seed belongs under sampling:"),
        (
            "engine: {sim_error_rate: 1}",
            "engine.sim_error_rate is not a field; sim_error_rate belongs under engine: simulated:",
        ),
        ("sampling: {max-tokens: 5}", "sampling.max-tokens is not a field; did you mean max_tokens?"),
        ("sampling: {seed: 1}\nsampling:\n  max_tokens: 5", "'sampling' stands twice, in line 2; join the two"),
        ("sampling: {seed: 1}\n'sampling': {max_tokens: 5}", "'sampling' stands twice, in line 2; join the two"),
        ("sampling:\n  seed: 1\n  top_k: 2\n  seed: 3", "'seed' stands twice, in line 4; keep one of them"),
        ("arms: {arm_list: [{name: a, name: b}]}", "'name' stands twice, in line 1; keep one of them"),
        ("- a", "holds a list where sections are needed"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load_config([], {}, file)


def test_what_a_yaml_anchor_brings_in_may_be_given_again(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    arms = "- &first {name: a, temperature: 0.5, top_p: 0.9}\n  - &second {<<: *first, name: b}\n  - {<<: *second, name: c}"
    file.write_text(f"arms:\n  arm_set: custom\n  arm_list:\n  {arms}\n")
    arm_list = load_config([], {}, file).arms.arm_list
    assert [(arm.name, arm.temperature) for arm in arm_list] == [("a", 0.5), ("b", 0.5), ("c", 0.5)]


def test_a_bad_field_ends_the_command_with_2_before_anything_starts(tmp_path: Path, rollout: Command) -> None:
    done = rollout("--n_sample", "8", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr == "rollout: --n_sample is not a flag; did you mean --n_samples?\n"
    assert not (tmp_path / "run").exists()


def test_the_digest_ignores_what_leaves_the_rows_as_they_are() -> None:
    base = RunConfig()
    for words in (["--replicas", "7"], ["--output_dir", "x"], ["--max_num_seqs", "7"], ["--sim_mean_tokens", "7"]):
        assert load_config(words).digest() == base.digest()
    for words in (
        ["--seed", "7"],
        ["--max_tokens", "7"],
        ["--beta", "7"],
        ["--model_path", "x"],
        ["--backend", "simulated"],
    ):
        assert load_config(words).digest() != base.digest()


def test_operational_names_exist() -> None:
    names = leaf_fields(RunConfig)
    for entry in OPERATIONAL:
        assert any(name.startswith(entry) if entry.endswith(".") else name == entry for name in names), entry
    assert is_operational("output.layout") and not is_operational("sampling.seed")


def test_a_config_is_frozen_and_refuses_unknown_fields_in_python_too() -> None:
    with pytest.raises(ValidationError):
        RunConfig(samplng={})  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        RunConfig().sampling.seed = 3


def test_reward_presets() -> None:
    assert (load_config().scoring.gamma, load_config().scoring.bonus) == (0.0, 0.0)
    second = load_config(["--reward_preset", "regime-w-2"]).scoring
    assert (second.gamma, second.bonus) == (0.3, 0.2)
    assert load_config(["--reward_preset", "regime-w-2", "--gamma", "0.1"]).scoring.gamma == 0.1
    exact = load_config(["--reward_preset", "exact"]).scoring
    assert (exact.alpha, exact.beta, exact.gamma, exact.bonus, exact.penalty_per_token) == (1.0, 0.0, 0.0, 0.0, 0.0)


def test_another_reward_preset_takes_the_values_of_the_former_one_away() -> None:
    defaults = load_config().scoring.model_dump()
    exact = load_config(["--reward_preset", "exact", "--penalty_free_tokens", "9"]).model_dump(mode="json")
    back = changed(exact, {"scoring": {"reward_preset": "regime-w"}}).scoring.model_dump()
    assert back == {**defaults, "penalty_free_tokens": 9}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "Reward: 1 for a correct answer, plus 0.5 x coherence (s_wm) for every answer, minus 0.001 a token beyond "
             "512. Wrong answers are paid, too; --reward_preset exact pays 1 or 0."),
        (["--reward_preset", "exact"], "Reward: 1 for a correct answer, 0 for any other."),
        (["--reward", "a.b:c"], "Reward: the function a.b:c."),
    ],
)  # fmt: skip
def test_what_is_paid_is_said_in_a_sentence(flags: list[str], sentence: str) -> None:
    assert reward_sentence(load_config(flags).scoring) == sentence


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda f: f.name)
def test_every_shipped_config_is_valid(file: Path) -> None:
    load_config([], {}, file)


def test_a_config_survives_json_and_yaml(tmp_path: Path) -> None:
    config = load_config(["--arm_list", '[{"name": "a", "temperature": 0.5}]', "--extra", '{"a": 1}', "--stop", "x"])
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config([], {}, file) == config
