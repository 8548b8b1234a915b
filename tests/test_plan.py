"""Test plans for machines that are elsewhere, and for a probed one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rollout_ray.api.plan import make_plan
from rollout_ray.cli.main import main
from rollout_ray.config.loading import load_config
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.data.prepare import prepare_demo
from rollout_ray.models.model_check import check_before_start
from rollout_ray.models.paths import DEMO_FOLDER
from rollout_ray.models.resolved_run import resolve
from rollout_ray.sizing.estimate import Plan
from rollout_ray.sizing.hardware import Gpu
from rollout_ray.sizing.probe import probe_caveat, probe_size
from tests.test_model_size import MODELS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("plan") / "questions.parquet")
    prepare_demo(200, 1, path)
    return path


def model(folder: Path, name: str) -> str:
    """Return a folder with a model's config and no weights."""
    (folder / "config.json").write_text(json.dumps(MODELS[name]))
    return str(folder)


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_plan_for_gpus_that_are_elsewhere(capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path) -> None:
    code, out, _ = planned(
        capsys, "--dataset", data, "--model_path", model(tmp_path, "7B"), "--on", "2x8xH100", "--price_per_hour", "48"
    )
    assert code == 0
    for words in (
        "200 in ",
        "8 samples a question, 1,600 trajectories",
        "16 engine(s) of 1 GPU(s) each, the nodes have 8, 8",
        "the model fits one",
        "weights take 13.5",
        "1024 sequences, at most 16384 tokens a step",
        "512 tokens on average (assumed: half of max_tokens)",
        "by the data sheet of H100 (within a third)",
        "starting 35 s",
        "GPU-hours",
        "at $48.00 an hour",
        "estimated from their characters",
        "warning: 1,600 trajectories fill 10% of the engines' batches. Use fewer --replicas.",
    ):
        assert words in out, words


def test_a_plan_for_a_model_that_needs_several_gpus(capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path) -> None:
    code, out, _ = planned(capsys, "--dataset", data, "--model_path", model(tmp_path, "70B"), "--on", "8xH100")
    assert code == 0 and "2 engine(s) of 4 GPU(s) each" in out and "the fewest that hold the model" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--on", "1xH100", "--model_path", "{70B}"], 4, "do not fit into 1 GPU(s) of 80 GiB. Use larger or more GPUs"),
        (["--on", "8xTPU"], 4, "'8xTPU' is not a number and a known kind of GPU. Give a number and one of B200"),
        (["--from", "nowhere"], 2, "nowhere holds no finished run that has generated something; name one with --from"),
        (["--prompt_key", "text"], 3, "has no column 'text' for the prompt"),
        (["--tensor_parallel_size", "4"], 4, "the machines at hand have none"),
        (["--from", "a", "--probe"], 2, "not allowed with argument --from"),
    ],
)
def test_an_impossible_plan_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    given = [word.replace("{70B}", model(tmp_path, "70B")) for word in words]
    returned, _, err = planned(capsys, "--dataset", data, *given)
    assert returned == code and message in err


def test_a_model_of_unknown_size_gives_a_warning(capsys: pytest.CaptureFixture[str], data: str) -> None:
    words = ["--dataset", data, "--model_path", "nobody/has-downloaded-this", "--on", "8xH100"]
    code, out, _ = planned(capsys, *words)
    warning = (
        "warning: The model's size is unknown, so the plan assumes one GPU a replica. Give --tensor_parallel_size, "
        "or download the model's config.json."
    )
    assert code == 0 and "8 engine(s) of 1 GPU(s) each" in out and warning in out
    code, out, _ = planned(capsys, *words, "--tensor_parallel_size", "4")
    assert code == 0 and "2 engine(s) of 4 GPU(s) each" in out and "is unknown, so" not in out


@pytest.mark.parametrize("path", ["./there", "/nowhere/there", "~/there", "runs/models/7b"])
def test_a_path_of_no_folder_is_no_hub_id(capsys: pytest.CaptureFixture[str], data: str, path: str) -> None:
    code, _, err = planned(capsys, "--dataset", data, "--model_path", path, "--on", "8xH100")
    named = os.path.expanduser(path)
    assert code == 2 and f"model_path {named} is no folder; give one that holds a model, or a hub id" in err


def test_a_plan_refuses_a_checkpoint_as_the_run_does(capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path) -> None:
    words = ["--dataset", data, "--model_path", model(tmp_path, "7B")]
    with pytest.raises(ConfigError, match="holds no weights") as refused:
        check_before_start(resolve(load_config(words)))
    assert planned(capsys, *words) == (refused.value.exit_code, "", f"rollout: {refused.value}\n")


def test_a_gpu_without_a_data_sheet_gets_no_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: str, tmp_path: Path
) -> None:
    gpus = [Gpu("NVIDIA Tomorrow", 80.0)] * 2
    monkeypatch.setattr("rollout_ray.api.plan.local_gpus", lambda: gpus)
    words = ["--load_format", "dummy", "--tokenizer_path", DEMO_FOLDER]  # the folder has a config alone
    code, out, _ = planned(capsys, "--dataset", data, "--model_path", model(tmp_path, "7B"), *words)
    assert code == 0 and "speed       unknown for NVIDIA Tomorrow: measure it with --probe" in out
    assert "weights take 13.5" in out and "data sheet" not in out and "GPU-hours" not in out


def test_too_long_prompts_and_a_missing_gold_give_warnings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in (3, 3, 40, 200)))
    code, out, _ = planned(capsys, "--dataset", str(path), "--max_model_len", "128", "--max_tokens", "64")
    assert code == 0
    assert "warning: The data has no gold answer, so nothing will be graded. Name its column with --gold_key." in out
    assert "prompts have 128 tokens or more and will be error rows. Raise --max_model_len." in out
    assert "(8 prompts tokenized)" in out and "measure it with --probe" in out


def test_a_probe_brings_speed_and_lengths(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path, local_ray: None
) -> None:
    words = ["--dataset", data, "--backend", "simulated", "--sim_mean_tokens", "40", "--probe", "20"]
    code, out, _ = planned(capsys, *words, "--output_dir", str(tmp_path / "run"))
    assert code == 0 and "by a probe of 20 questions" in out and "(measured)" in out
    tokens = float(out.partition("output ")[2].split()[0])
    assert 30 < tokens < 50
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def plan(data: str, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    cfg = {"data": {"dataset": data}, "model": {"model_path": model(tmp_path_factory.mktemp("model"), "7B")}}
    return make_plan(RunConfig.model_validate(cfg), on="4xH200")


def test_twice_the_engines_take_half_the_generation_and_all_of_the_start(plan: Plan) -> None:
    many = replace(plan, questions=100_000)
    wide = replace(many, engines=8, gpus=8)
    assert many.generation_seconds and wide.generation_seconds and many.rates and many.seconds and wide.seconds
    tail = many.rates.tail_seconds
    assert (wide.generation_seconds - tail) * 2 == pytest.approx(many.generation_seconds - tail)
    assert many.seconds - wide.seconds == pytest.approx(many.generation_seconds - wide.generation_seconds)
    assert wide.gpu_hours == pytest.approx(wide.seconds * 8 / 3600)


def test_the_data_sheet_comes_near_what_was_measured(data: str, tmp_path: Path) -> None:
    """Measured on H200s with a 7B and 4,000 x 256 tokens, on one, two and eight GPUs."""
    for degree, measured in ((1, 27_500), (2, 38_600), (8, 28_700)):
        cfg = {
            "data": {"dataset": data},
            "model": {"model_path": model(tmp_path, "7B")},
            "engine": {"tensor_parallel_size": degree},
            "sampling": {"max_tokens": 512},
        }
        made = make_plan(RunConfig.model_validate(cfg), on=f"{degree}xH200")
        assert made.rates and made.rates.tokens_per_second == pytest.approx(measured, rel=1 / 3)


@pytest.mark.parametrize(
    ("questions", "wanted", "count"),
    [(100_000, 0, 768), (1000, 0, 100), (20, 0, 2), (2, 0, 1), (1000, 5, 5), (0, 0, 1)],
)
def test_a_probe_is_a_small_part_of_the_run(questions: int, wanted: int, count: int) -> None:
    assert probe_size(questions, 8, 2048, wanted) == count


@pytest.mark.parametrize(("questions", "wanted"), [(20, 20), (20, 96), (1, 0)])
def test_a_probe_of_the_whole_run_is_refused(questions: int, wanted: int) -> None:
    with pytest.raises(ConfigError, match=r"would draw the whole run .* Start the run itself"):
        probe_size(questions, 8, 256, wanted)


def test_a_probe_that_does_not_fill_the_engines_says_so() -> None:
    assert probe_caveat(96, 8, 256) is None
    caveat = probe_caveat(5, 8, 256)
    assert caveat and caveat.startswith("The probe had 40 trajectories for 256 places") and "--probe 96 would" in caveat


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("10h", "budget      10h is enough"),
        ("36s", "warning: The budget of 36s ends the run with about "),
    ],
)
def test_a_plan_says_what_a_budget_reaches(
    capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path, budget: str, said: str
) -> None:
    words = ["--dataset", data, "--model_path", model(tmp_path, "7B"), "--on", "8xH100", "--budget", budget]
    code, out, _ = planned(capsys, *words)
    assert code == 0 and said in out, out


def test_a_plan_without_a_speed_does_not_promise_that_a_budget_is_enough(
    capsys: pytest.CaptureFixture[str], data: str
) -> None:
    code, out, _ = planned(capsys, "--dataset", data, "--budget", "1h")
    assert code == 0 and "Nobody can tell whether the budget of 1h is enough" in out
