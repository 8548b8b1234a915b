"""Test paths as users give them: `~` where no shell replaces it, and URIs where a local file was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray.config.loading import load_config
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.data.prepare import prepare_demo, prepare_gsm8k
from rollout_ray.data.question_set import load_questions
from rollout_ray.export.formats import export
from rollout_ray.models.paths import model_folder
from rollout_ray.report.html import write_report
from rollout_ray.results.rescore import rescore
from rollout_ray.results.verify import verify
from rollout_ray.storage.paths import local_path
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import Command, demo_rows
from tests.finished_runs import finished

PATHS = {
    "data": ("dataset", "lengths_from"),
    "model": ("model_path", "tokenizer_path", "lora_path"),
    "output": ("output_dir",),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home. The working folder is another one, and stays empty."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_every_path_of_a_config_may_begin_with_the_home(home: Path) -> None:
    (home / "p.jinja").write_text("{{ prompt }}!")
    (home / "c.jinja").write_text("{{ messages }}?")
    lines = [line for section, names in PATHS.items() for line in (f"{section}:", *(f"  {n}: ~/{n}" for n in names))]
    (home / "run.yaml").write_text("\n".join(lines))
    arms = '[{"name": "a", "lora_path": "~/arm"}]'
    flags = ["--prompt_template=~/p.jinja", "--arm_list", arms]
    cfg = load_config(flags, {"ROLLOUT_CHAT_TEMPLATE": "~/c.jinja"}, "~/run.yaml")
    for section, names in PATHS.items():
        for name in names:
            assert getattr(getattr(cfg, section), name) == str(home / name)
    assert cfg.arms.arm_list[0].lora_path == str(home / "arm")
    assert (cfg.data.prompt_template, cfg.model.chat_template) == ("{{ prompt }}!", "{{ messages }}?")
    assert RunConfig.model_validate({"output": {"output_dir": "a~b"}}).output.output_dir == "a~b"


def test_every_file_of_a_command_may_lie_in_the_home(home: Path) -> None:
    run = finished(home / "run", demo_rows(4))
    assert RunDirectory("~/run").uri == run.uri
    assert verify("~/run").agrees and verify("~/run/merged.parquet").agrees
    export(["~/run"], "~/out/rows.parquet", "sft")
    assert write_report("~/run", "~/out/page.html").questions == 4
    rescore("~/run", ["--beta", "0"], {}, None, "~/out/again.parquet")
    assert prepare_demo(3, 1, "~/out/demo.parquet") == 3
    (home / "train.jsonl").write_text('{"question": "q", "answer": "so #### 7"}')
    assert prepare_gsm8k("~/train.jsonl", "~/out/gsm8k.parquet") == 1
    names = {"rows.parquet", "page.html", "again.parquet", "demo.parquet", "gsm8k.parquet"}
    assert {path.name for path in (home / "out").iterdir()} == names
    assert len(load_questions("~/out/demo.parquet", RunConfig().data).ids) == 3
    assert len(load_questions("~/out/d*.parquet", RunConfig().data).ids) == 3
    assert model_folder("~/model") == local_path("~/model", "merge-lora") == str(home / "model")
    assert not list(Path().iterdir())


def test_a_question_set_is_made_of_gsm8ks_parquet_and_by_uris(home: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"so #### 1,00{n}"} for n in range(3)]
    (home / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), home / "train.parquet")
    for kind in ("jsonl", "parquet"):
        assert prepare_gsm8k(home / f"train.{kind}", home / f"from-{kind}.parquet") == 3
    one, other = (pq.read_table(home / f"from-{kind}.parquet") for kind in ("jsonl", "parquet"))
    assert one.equals(other) and one.column("gold_answer").to_pylist() == ["1000", "1001", "1002"]
    prepare_gsm8k(f"file://{home}/train.jsonl", f"file://{home}/uri.parquet")
    assert pq.read_table(home / "uri.parquet").equals(one)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("flag", ["--adapter", "--output"])
def test_a_uri_where_only_a_folder_can_be_is_refused(home: Path, flag: str, rollout: Command) -> None:
    words = {"--base": "demo", "--adapter": "adapter", "--output": "merged"} | {flag: "s3://bucket/x"}
    done = rollout("merge-lora", *(word for pair in words.items() for word in pair))
    assert done.returncode == ConfigError.exit_code
    assert "s3://bucket/x is a URI, and merge-lora takes folders of this machine. Give a local path" in done.stderr
    assert not list(Path().iterdir())
